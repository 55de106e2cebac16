"""``combicam.export``: an explainer becomes a file that other people's servers run."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from combicam.engine.backends import eager_backend
from combicam.engine.explainer import Explainer
from combicam.engine.sessions import ModelSession, Request
from combicam.errors import ArtifactError
from combicam.export.artifact import artifact_suffix, write_artifact
from combicam.export.trace import TINY, JointGraph, example_inputs

# Rounding may switch a ReLU whose input is zero to rounding.
TOLERANCES = {"float64": 1e-3, "float32": 1e-3, "float16": 0.05, "bfloat16": 0.3}
VERIFY_BATCH = 3


@dataclass(frozen=True)
class Verification:
    """How far an artifact is from the network it came from, on images it was not traced with.

    Attributes:
        images: how many were compared.
        max_heatmap_error: largest absolute difference of a heatmap's pixel.
        max_logit_error: largest difference of a logit, relative to the largest logit.
    """

    images: int
    max_heatmap_error: float
    max_logit_error: float


def export(
    explainer: Explainer,
    path: str | Path,
    *,
    target_input: str = "classes",
    verify: bool = True,
    tolerance: float | None = None,
) -> Verification | None:
    """Write ``model.onnx`` or ``model.ts``: graph, weights, spec, layers, preprocessing, classes.

    Inputs of the file: ``images`` float32 [B,3,H,W], normalised, and, unless ``target_input`` is
    ``none``, ``targets``. Outputs: ``logits``, ``classes`` (the explained ones), ``scores``,
    ``heatmaps``, ``ranges``, and the layer maps with ``keep_layers``. B is free.

    Args:
        explainer: over a network; one that was loaded from a file has no network to export.
        path: the suffix decides the format.
        target_input: ``classes``: int64 [B,K], negative entries mean the k-th best class;
            ``none``: always the K best; ``weights``: float32 [B,K,n], regions.
        verify: load the file and compare it with the network; one that disagrees is not kept.
        tolerance: largest absolute difference of a heatmap's pixel, and of a logit relative to the
            largest; default: 1e-3, for float16 0.05, for bfloat16 0.3.

    Returns:
        The comparison, or None without ``verify``.

    Raises:
        ValueError, FileNotFoundError: another suffix, or no such folder.
        ArtifactError: an explainer without a network, or a file that disagrees by more.
        TraceError: the graph has no such form.
    """
    path = Path(path)
    check_output(path)
    session = explainer.session
    if not isinstance(session, ModelSession):
        raise ArtifactError(
            "export: expected an explainer over a network, got one that was loaded from a file; "
            "copy that file, or export the network again"
        )
    joint = session.joint(Request(target_input, explainer.spec.targets))
    description = replace(
        explainer.description, signature=joint.signature, outputs=joint.output_names
    )
    found = None
    # Nothing is seen under the final name before it was written and checked.
    with tempfile.TemporaryDirectory(prefix=".export-", dir=path.parent) as folder:
        draft = Path(folder) / path.name
        write_artifact(joint.portable(), description, draft)
        if verify:
            found = _compare(joint, Explainer.load(draft, device=session.device))
            limit = TOLERANCES[joint.signature.dtype] if tolerance is None else tolerance
            worst = max(found.max_heatmap_error, found.max_logit_error)
            if not worst <= limit:
                raise ArtifactError(
                    f"export: expected heatmaps and logits within {limit} of the network's, got "
                    f"{found.max_heatmap_error:.3g} and {found.max_logit_error:.3g}; nothing was "
                    "written, a larger tolerance or verify=False keeps the file"
                )
        for file in Path(folder).iterdir():  # weights beyond 2 GB lie beside the graph
            file.replace(path.parent / file.name)
    return found


def check_output(path: Path) -> None:
    """Refuse a file name that cannot be written, before any work is done.

    Raises:
        ValueError: a suffix that is no format.
        FileNotFoundError: no such folder.
    """
    artifact_suffix(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"export: expected an existing folder, got {path.parent}")


def natural_noise(count: int, size: tuple[int, int], seed: int = 0) -> Tensor:
    """Random images with the falling spectrum of photos: float32 [count,3,H,W], deviation 1."""
    generator = torch.Generator().manual_seed(seed)
    white = torch.randn(count, 3, *size, generator=generator)
    fy = torch.fft.fftfreq(size[0])[:, None]
    fx = torch.fft.rfftfreq(size[1])[None]
    amplitude = 1 / torch.sqrt(fy**2 + fx**2).clamp_min(1 / max(size))
    pink = torch.fft.irfft2(torch.fft.rfft2(white) * amplitude, s=size)
    return (pink - pink.mean((-2, -1), keepdim=True)) / pink.std((-2, -1), keepdim=True)


def _compare(joint: JointGraph, artifact: Explainer) -> Verification:
    """The file beside the graph in eager torch, on images and a batch size of neither's trace."""
    _, *targets = example_inputs(joint, VERIFY_BATCH)
    images = natural_noise(VERIFY_BATCH, joint.signature.input_size).to(artifact.device)
    if joint.signature.target_input == "weights":
        targets = [torch.rand_like(t) for t in targets]
    inputs = [images, *targets]
    ours = eager_backend(joint)(inputs)
    theirs = artifact.session.execute(artifact.session.top)(inputs)
    named = {
        name: (a.float(), b.float())
        for name, a, b in zip(joint.output_names, ours, theirs, strict=True)
    }
    heatmaps, (logits, other) = named["heatmaps"], named["logits"]
    return Verification(
        VERIFY_BATCH,
        float((heatmaps[0] - heatmaps[1]).abs().max()),
        float((logits - other).abs().max() / logits.abs().max().clamp_min(TINY)),
    )
