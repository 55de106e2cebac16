"""Write the README.md of a model repository."""

from __future__ import annotations

from collections.abc import Sequence

from combicam.engine.serving.model_config import TensorInfo
from combicam.export.formats.artifact import Description
from combicam.export.trace.scores import best_classes, last_rank
from combicam.export.trace.trace import JointGraph

_TEXT = """\
# {name}

Scores and class activation maps of `{model}` from one ONNX graph, for NVIDIA Triton Inference
Server.{note}

## Start the server

From the folder that holds `{name}/` (the model repository):

```sh
docker run --rm --gpus all -p 8000:8000 -p 8001:8001 -p 8002:8002 -v "$PWD":/models:ro \\
    nvcr.io/nvidia/tritonserver:25.08-py3 tritonserver --model-repository=/models
```

Without a GPU leave `--gpus all` out: the model then runs on the CPU. A newer image does as well.

## Ask it

```sh
pip install 'tritonclient[http]' pillow numpy
python {name}/client.py photo.jpg --url localhost:8000{ask}
```

prints the top classes and saves `photo.heatmap.png`. Your own client must treat photos as
`preprocessing.json` says, as `client.py` does.

| tensor | type | shape | |
|---|---|---|---|
{tensors}

{targets}

`labels.txt` has the {classes} classes of `logits`, one a line.

## Check it

```sh
python {name}/client.py --golden --url localhost:8000
```

sends `golden/input.npz` and compares the answer with `golden/output.npz`, which the network itself
gave in eager PyTorch, float32. Differences beyond {tolerance:g} of an output's largest value fail
(exit status 1). GPUs from Ampere on round float32 convolutions to TF32: if the check fails for
that, start the server with `-e NVIDIA_TF32_OVERRIDE=0` after `docker run`, and repeat it.

The server forms the batches: see `max_batch_size` in `config.pbtxt`, and `dynamic_batching` where
that is more than 1. The batch sizes under `model_warmup` are warmed up before the model is ready.
That the log ignores a "version directory 'golden'" is right.
"""

_MEANINGS = {
    "images": "photos, normalised",
    "targets": "what to explain",
    "logits": "of all classes",
    "classes": "which were explained; -1 for weights",
    "scores": "their probabilities; of weights, the weighted sum of probabilities",
    "heatmaps": "of the image's size",
    "ranges": "smallest and largest value of each map before its normalisation",
}
_TARGETS = {
    "none": "The K = {count} best classes of each image are explained.",
    "classes": "`targets` must be sent: K = {count} class numbers for each image. -1 is the best "
    "class, -2 the second best, and so on to {last}, which smaller numbers mean, too: {default} "
    "asks for the best.",
    "weights": "`targets` must be sent: K = {count} regions or contrasts for each image, a weight "
    "for each class. Classes with a weight > 0 count for, those with one < 0 against; not all may "
    "be 0. The client's `--targets` are the classes of one region.",
}


def readme_text(
    description: Description,
    joint: JointGraph,
    name: str,
    tensors: Sequence[TensorInfo],
    tolerance: float,
) -> str:
    """The text.

    Args:
        description, joint: what is served.
        name: of the model on the server.
        tensors: inputs and outputs.
        tolerance: of the golden outputs.
    """
    rows = [
        f"| `{t.name}` | {t.datatype} | [B, {', '.join(map(str, t.dims))}] "
        f"| {_MEANINGS.get(t.name, 'map of this layer')} |"
        for t in tensors
    ]
    count, kind = joint.spec.targets, joint.signature.target_input
    targets = _TARGETS[kind].format(
        count=count,
        default=best_classes(1, count)[0].tolist(),
        last=-last_rank(joint.signature.classes, count),
    )
    return _TEXT.format(
        name=name,
        model=description.model,
        note=f"\n\n*{description.note}*" if description.note else "",
        tensors="\n".join(rows),
        targets=targets,
        ask=" --targets 0 1" if kind == "weights" else "",
        classes=joint.signature.classes,
        tolerance=tolerance,
    )
