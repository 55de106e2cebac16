"""Make golden inputs, and the outputs of the original model that a server must reproduce."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from combicam.engine.explain.artifact_export import natural_noise
from combicam.engine.serving.client import golden_errors
from combicam.errors import ArtifactError
from combicam.export.trace.reference import eager_reference
from combicam.export.trace.trace import JointGraph
from combicam.version import __version__

IMAGES = 3
SEED = 7
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Golden:
    """Inputs and outputs by name, for a batch."""

    inputs: Arrays
    outputs: Arrays


def make_golden(joint: JointGraph, model: nn.Module, device: torch.device) -> Golden:
    """Explain natural noise in float32: the first image's best classes, given ones of the others.

    Args:
        joint: the served graph.
        model: the model it was traced from.
        device: of the model.
    """
    inputs = _inputs(joint)
    reference = eager_reference(model, joint)
    outputs = reference([torch.from_numpy(a).to(device) for a in inputs.values()])
    arrays = (output.cpu().numpy() for output in outputs)
    return Golden(inputs, dict(zip(joint.output_names, arrays, strict=True)))


def _inputs(joint: JointGraph) -> Arrays:
    signature, count = joint.signature, joint.spec.targets
    images = natural_noise(IMAGES, signature.input_size, SEED, signature.channels).numpy()
    if signature.target_input == "none":
        return {"images": images}
    if signature.target_input == "weights":
        rng = np.random.default_rng(SEED)
        regions = rng.random((IMAGES, count, signature.classes), np.float32)
        return {"images": images, "targets": regions}
    targets = np.arange(IMAGES * count, dtype=np.int64).reshape(IMAGES, count)
    targets %= signature.classes
    targets[0] = -1 - np.arange(count)
    return {"images": images, "targets": targets}


def check_golden(golden: Golden, runtime: Any, tolerance: float) -> None:
    """Run the inputs in an ONNX Runtime session, and check the outputs.

    Raises:
        ArtifactError: an output differs by more than ``tolerance`` of its largest value.
    """
    names = list(golden.outputs)
    actual = dict(zip(names, runtime.run(names, golden.inputs), strict=True))
    errors = golden_errors(golden.outputs, actual)
    worst = max(errors, key=errors.__getitem__)
    if not errors[worst] <= tolerance:
        raise ArtifactError(
            f"triton repository: expected ONNX Runtime within {tolerance} of the model, got "
            f"{errors[worst]:.3g} in {worst!r}; nothing was written; to keep it, raise the "
            "tolerance or pass allow_disagreement"
        )


def write_golden(golden: Golden, folder: Path, tolerance: float) -> None:
    """Write input.npz, output.npz, and golden.json with their description and the tolerance."""
    folder.mkdir()
    named: dict[str, dict[str, Any]] = {"input": golden.inputs, "output": golden.outputs}
    for name, arrays in named.items():
        np.savez_compressed(folder / f"{name}.npz", **arrays)
    about = {
        "tolerance": tolerance,
        "measure": "largest difference / largest value of an output",
        "images": f"{IMAGES} of noise with the spectrum of photos, normalised",
        "computed_by": f"combicam {__version__}, torch {torch.__version__} eager, float32",
    }
    (folder / "golden.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
