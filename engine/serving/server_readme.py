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

From the folder that contains `{name}/` (the model repository):

```sh
docker run --rm --gpus all -p 8000:8000 -p 8001:8001 -p 8002:8002 -v "$PWD":/models:ro \\
    nvcr.io/nvidia/tritonserver:25.08-py3 tritonserver --model-repository=/models
```

Without a GPU leave out `--gpus all`: the model then runs on the CPU. Newer images work as well.

## Send a request

{request} Your own client must preprocess images
as `preprocessing.json` describes; see `client.py`.

| tensor | type | shape | |
|---|---|---|---|
{tensors}

{targets}

`labels.txt` lists the {classes} classes of `logits`, one per line.

## Check the server

```sh
python {name}/client.py --golden --url localhost:8000
```

This sends `golden/input.npz` and compares the response with `golden/output.npz`, which the original
model computed in eager PyTorch, float32. It fails (exit status 1) if a difference exceeds
{tolerance:g} of an output's largest value. GPUs from Ampere on round float32 convolutions to TF32:
if the check fails for this reason, start the server with `-e NVIDIA_TF32_OVERRIDE=0` after
`docker run`, and repeat it.

The server forms the batches: see `max_batch_size` in `config.pbtxt`, and `dynamic_batching` if it
is more than 1. The batch sizes under `model_warmup` are warmed up before the model is ready.
The server's log may say that it ignores a "version directory 'golden'"; this is expected.
"""

_PHOTO_REQUEST = """\
```sh
pip install 'tritonclient[http]' pillow numpy
python {name}/client.py photo.jpg --url localhost:8000{ask}
```

This prints the top classes and saves `photo.heatmap.png`."""
_OTHER_REQUEST = "The model takes images of {channels} channels, not photos."
_MEANINGS = {
    "images": "images, normalised",
    "targets": "what to explain",
    "logits": "of all classes",
    "classes": "explained classes; -1 for weights",
    "scores": "their probabilities; for weights, the weighted sum of probabilities",
    "heatmaps": "of the image's size",
    "ranges": "smallest and largest value of each map before its normalisation",
}
_TARGETS = {
    "none": "The K = {count} best classes of each image are explained.",
    "classes": "`targets` is required: K = {count} class numbers for each image. -1 is the best "
    "class, -2 the second best, and so on down to {last}; lower numbers mean the same as {last}. "
    "{default} selects the best.",
    "weights": "`targets` is required: K = {count} regions or contrasts for each image, with a "
    "weight for each class. Classes with a weight > 0 count for, those < 0 against; not all may "
    "be 0. The client's `--targets` are the classes of one region.",
}


def readme_text(
    description: Description,
    joint: JointGraph,
    name: str,
    tensors: Sequence[TensorInfo],
    tolerance: float,
) -> str:
    """The text of README.md.

    Args:
        description, joint: of the served model.
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
    request = _PHOTO_REQUEST if description.preprocess.takes_photos else _OTHER_REQUEST
    return _TEXT.format(
        name=name,
        model=description.model,
        note=f"\n\n*{description.note}*" if description.note else "",
        tensors="\n".join(rows),
        targets=targets,
        request=request.format(
            name=name,
            ask=" --targets 0 1" if kind == "weights" else "",
            channels=joint.signature.channels,
        ),
        classes=joint.signature.classes,
        tolerance=tolerance,
    )
