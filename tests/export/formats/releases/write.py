"""Write the files of a release, and their numbers, into this folder.

By hand, once for every release, by its own code: ``PYTHON_OF_THE_RELEASE write.py``. What is here
is never written again: later versions have to open it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

HERE = Path(__file__).parent
SIZE = (24, 36)
CLASSES = 5
# Name -> the explainer, the kind of targets, and targets.
FILES: dict[str, tuple[dict[str, Any], str, Any]] = {
    "classes.onnx": ({"targets": 2}, "classes", [[-1, -2], [3, 0], [-1, 2]]),
    "weights.onnx": (
        {"layers": "last", "method": "layercam", "score": "prob"},
        "weights",
        np.float32([[[0, 1, 0, 1, 0]], [[1, 0, 0, 0, 0]], [[0, 0, 1, 1, 1]]]),
    ),
    "classes.ts": ({"targets": 2}, "classes", [[-1, -2], [3, 0], [-1, 2]]),
    "layers.ts": (
        {"method": "gradcam++", "score": "logit", "fuse": "max", "keep_layers": True},
        "none",
        None,
    ),
}


def network() -> nn.Module:
    """Two blocks; its weights are a formula, the same with every version of torch."""
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU()),
        nn.Sequential(nn.Conv2d(6, 8, 3, 2, 1), nn.SiLU()),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, CLASSES),
    )
    with torch.no_grad():
        for i, values in enumerate(model.parameters()):
            wave = torch.sin(torch.arange(values.numel(), dtype=torch.float64) * (1.7 + i) + i)
            values.copy_(wave.reshape(values.shape) * 0.5 + 0.1 * (i == 2))
    return model.eval()


def images() -> np.ndarray:
    """uint8 [3,24,36,3], not those of a trace."""
    i, y, x, c = np.ogrid[:3, : SIZE[0], : SIZE[1], :3]
    waves = (
        np.sin(0.3 * x + i + c) + np.cos(0.5 * y - c) + ((x - 8 * i - 9) ** 2 + (y - 9) ** 2 < 40)
    )
    return np.uint8(255 * (waves + 2) / 5)


def without_notes(path: Path) -> None:
    """Drop what the exporter notes about nodes, four fifths of a small file; nothing reads it."""
    import onnx

    model = onnx.load(path)
    for node in model.graph.node:
        del node.metadata_props[:]
    onnx.save(model, path)


def main() -> None:
    import combicam

    for name, (settings, target_input, targets) in FILES.items():
        settings = {"layers": ["0", "1"], **settings}
        explainer = combicam.Explainer(network(), SIZE, **settings)
        stem, suffix = name.split(".")
        path = HERE / f"{combicam.__version__}-{stem}.{suffix}"
        combicam.export(explainer, path, target_input=target_input)
        if suffix == "onnx":
            without_notes(path)
        found = explainer(images(), None if targets is None else np.array(targets))
        arrays = {
            "logits": found.logits,
            "classes": found.targets,
            "scores": found.scores,
            "heatmaps": found.heatmaps,
            "ranges": found.ranges,
            **{f"map:{layer}": values for layer, values in found.layer_maps.items()},
        }
        numbers = {key: values.numpy() for key, values in arrays.items()}
        if targets is not None:
            numbers["targets"] = np.array(targets)
        np.savez_compressed(path.with_name(f"{path.name}.npz"), **numbers)
        print(path.name)


if __name__ == "__main__":
    main()
