"""``combicam.export``: an explainer becomes a file that other people's servers run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from combicam.engine.explainer import Explainer
from combicam.engine.sessions import ModelSession, Request
from combicam.errors import ArtifactError
from combicam.export.artifact import artifact_suffix, write_artifact

TOLERANCE = 1e-3
VERIFY_BATCH = 3


@dataclass(frozen=True)
class Verification:
    """How far an artifact is from the network it came from, on images it was not traced with.

    Attributes:
        images: how many were compared.
        max_heatmap_error: largest absolute difference of a heatmap's pixel.
        max_logit_error: largest absolute difference of a logit.
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
    tolerance: float = TOLERANCE,
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
        verify: load the file and compare it with the network; a file that disagrees is deleted.
        tolerance: largest absolute difference of a heatmap's pixel; half precision needs more.

    Returns:
        The comparison, or None without ``verify``.

    Raises:
        ValueError: another suffix.
        ArtifactError: an explainer without a network, or a file that disagrees by more.
        TraceError: the graph has no such form.
    """
    path = Path(path)
    artifact_suffix(path)
    session = explainer.session
    if not isinstance(session, ModelSession):
        raise ArtifactError(
            "export: expected an explainer over a network, got one that was loaded from a file; "
            "copy that file, or export the network again"
        )
    joint = session.joint(Request(target_input, explainer.spec.targets)).portable()
    description = replace(
        explainer.description, signature=joint.signature, outputs=joint.output_names
    )
    write_artifact(joint, description, path)
    if not verify:
        return None
    found = _compare(explainer, Explainer.load(path, device=session.device))
    if not found.max_heatmap_error <= tolerance:
        path.unlink()
        raise ArtifactError(
            f"export: expected heatmaps within {tolerance} of the network's, got an error of "
            f"{found.max_heatmap_error:.3g}; {path} was deleted, verify=False keeps it"
        )
    return found


def natural_noise(count: int, size: tuple[int, int], seed: int = 0) -> Tensor:
    """Random images with the falling spectrum of photos: float32 [count,3,H,W], deviation 1."""
    generator = torch.Generator().manual_seed(seed)
    white = torch.randn(count, 3, *size, generator=generator)
    fy = torch.fft.fftfreq(size[0])[:, None]
    fx = torch.fft.rfftfreq(size[1])[None]
    amplitude = 1 / torch.sqrt(fy**2 + fx**2).clamp_min(1 / max(size))
    pink = torch.fft.irfft2(torch.fft.rfft2(white) * amplitude, s=size)
    return (pink - pink.mean((-2, -1), keepdim=True)) / pink.std((-2, -1), keepdim=True)


def _compare(network: Explainer, artifact: Explainer) -> Verification:
    images = natural_noise(VERIFY_BATCH, network.input_size).to(network.device)
    targets = None
    if artifact.session.top.target_input == "weights":
        classes = network.description.signature.classes
        targets = torch.rand(VERIFY_BATCH, network.spec.targets, classes)
    ours, theirs = network(images, targets), artifact(images, targets)
    return Verification(
        VERIFY_BATCH,
        float((ours.heatmaps.cpu() - theirs.heatmaps.cpu()).abs().max()),
        float((ours.logits.cpu() - theirs.logits.cpu()).abs().max()),
    )
