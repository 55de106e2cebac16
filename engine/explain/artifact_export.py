"""Export an explainer as a file."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from combicam.engine.explain.artifact_verify import TOLERANCES, Verification, verify_artifact
from combicam.engine.explain.explainer import Explainer
from combicam.engine.explain.sessions import ModelSession, Request
from combicam.errors import ArtifactError
from combicam.export.formats.artifact import (
    artifact_suffix,
    check_dtype,
    check_weights,
    write_artifact,
)
from combicam.export.formats.onnx_opset import check_opset
from combicam.export.formats.runtimes import check_file, check_runtime, default_runtime
from combicam.export.trace.arithmetic import plain_arithmetic

VERIFY_IMAGES = 8


def export(
    explainer: Explainer,
    path: str | Path,
    *,
    target_input: str = "classes",
    opset: int | None = None,
    weights: str = "float32",
    runtime: str | None = None,
    verify: int | bool = VERIFY_IMAGES,
    tolerance: float | None = None,
    allow_disagreement: bool = False,
) -> Verification | None:
    """Write ``model.onnx``, ``.ts`` or ``.pt2``: graph, weights, spec, preprocessing, classes.

    Inputs of the file: ``images`` float32 [B,C,H,W], normalised, and, unless ``target_input`` is
    ``none``, ``targets``. Outputs: ``logits``, ``classes`` (the explained ones), ``scores``,
    ``heatmaps``, ``ranges``, and the layer maps with ``keep_layers``. B is dynamic. The model
    computes in the explainer's dtype; scores, the pooling of gradients and the maps in float32.

    Args:
        explainer: of a model; one that was loaded from a file has no model to export.
        path: its suffix selects the format; a .pt2 file is compiled for the explainer's device.
        target_input: ``classes``: int64 [B,K], -1 the best, -2 the second best, …, -n the worst
            (with more than 1024 classes: down to -1024; lower numbers mean the same as -1024);
            ``none``: always the K best; ``weights``: float32 [B,K,n], regions and contrasts.
        opset: of an .onnx file, from 13 to the newest that the installed onnx and onnxruntime
            support; None for 18. Older ones lack operators, of which some are rewritten.
        weights: how an .onnx file stores them: ``float16`` halves the file; the computation stays
            in float32, with weights that were rounded to 11 bits.
        runtime: which will run an .onnx file: ``onnxruntime-cpu``, ``onnxruntime-cuda``,
            ``openvino``, ``tensorrt`` or ``web``; any other may, too, but slower, or not at all.
            None for ONNX Runtime on the explainer's device.
        verify: number of random images, with the spectrum of photos, on which the file is compared
            with the model in eager float32; True for the default, 0 or False for none.
        tolerance: largest difference of a typical image, and largest mean difference, relative to
            the largest value of the same output (for heatmaps 1); default: 1e-3, for float16 (also
            of the weights) 0.1, for bfloat16 0.3.
        allow_disagreement: keep a file beyond the tolerance, whose ``agrees`` is False, or one that
            the runtime does not run.

    Returns:
        The comparison, output by output; None if nothing was compared.

    Raises:
        ValueError, FileNotFoundError: an unknown suffix or target_input, a dtype, opset or runtime
            that the format cannot have, or a missing folder.
        ArtifactError: an explainer without a model, a file that disagrees, or one with operators
            that the given runtime lacks.
        TraceError: the graph cannot be written in this format or opset; the message names the
            operator and the module that calls it.
    """
    path = Path(path)
    check_output(path)
    check_opset(opset, path.suffix)
    check_runtime(runtime, path.suffix)
    check_weights(weights, path.suffix, runtime)
    request = Request(target_input, explainer.spec.targets)
    images = VERIFY_IMAGES if verify is True else int(verify)
    if images < 0:
        raise ValueError(f"export: expected verify >= 0 images, got {verify}; 0 means none")
    session = explainer.session
    if not isinstance(session, ModelSession):
        raise ArtifactError(
            "export: expected an explainer of a model, got one that was loaded from a file; "
            "copy that file, or export the model again"
        )
    if not explainer.preprocess.has_one_size:
        raise ValueError(
            f"export: expected resize 'squash' or 'crop', got {explainer.preprocess.resize!r}: a "
            "file takes images of one size; choose 'squash' or 'crop'"
        )
    check_dtype(path.suffix, explainer.description.signature.dtype)
    asked = runtime
    if path.suffix == ".onnx" and runtime is None:
        runtime = default_runtime(session.device.type)
    joint = session.joint(request, for_onnx=path.suffix == ".onnx")
    description = replace(
        explainer.description, signature=joint.signature, outputs=joint.output_names
    )
    verification = None
    everywhere = plain_arithmetic(torch.device("cpu"), session.device)  # writing runs the graph
    # A file gets its final name only after it was written and checked.
    with tempfile.TemporaryDirectory(prefix=".export-", dir=path.parent) as folder, everywhere:
        draft = Path(folder) / path.name
        write_artifact(joint, description, draft, opset, weights, runtime)
        if asked is not None and not allow_disagreement:
            _check_operators(draft, asked)
        if images:
            limits = TOLERANCES[joint.signature.dtype], TOLERANCES[weights]
            limit = max(limits) if tolerance is None else tolerance
            artifact = Explainer.load(draft, device=session.device)
            signature = joint.signature
            samples = natural_noise(images, signature.input_size, channels=signature.channels)
            verification = verify_artifact(artifact, joint, session.module, samples, limit)
            if not verification.agrees and not allow_disagreement:
                raise ArtifactError(
                    f"export: expected outputs within {limit:g} of the model's in float32, got "
                    f"{verification}; nothing was written; to keep the file, raise the tolerance "
                    "or pass allow_disagreement (--force)"
                )
        beside = path.with_name(f"{path.name}.data")
        if path.suffix == ".onnx" and not (Path(folder) / beside.name).exists():
            beside.unlink(missing_ok=True)  # left by a larger model exported to this path before
        # Weights beyond 2 GB are a file beside the graph, which must exist before the graph does.
        for file in sorted(Path(folder).iterdir(), key=lambda f: f.name == path.name):
            file.replace(path.parent / file.name)
    return verification


def _check_operators(path: Path, runtime: str) -> None:
    """Check that a runtime has all that a file needs.

    Raises:
        ArtifactError: it does not.
    """
    check = check_file(path, runtime)
    if not check.runs:
        raise ArtifactError(
            f"export: expected operators that {runtime} has, got {check} ({check.basis}); "
            "nothing was written; choose another runtime or layers, or pass allow_disagreement "
            "(--force) to keep the file"
        )


def check_output(path: Path) -> None:
    """Check that a file can be written, before any work is done.

    Raises:
        ValueError: a suffix without a format.
        FileNotFoundError: a missing folder.
    """
    artifact_suffix(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"export: expected an existing folder, got {path.parent}")


def natural_noise(count: int, size: tuple[int, int], seed: int = 0, channels: int = 3) -> Tensor:
    """Random images with the 1/f spectrum of photos: float32 [count,C,H,W], deviation 1."""
    generator = torch.Generator().manual_seed(seed)
    white = torch.randn(count, channels, *size, generator=generator)
    fy = torch.fft.fftfreq(size[0])[:, None]
    fx = torch.fft.rfftfreq(size[1])[None]
    amplitude = 1 / torch.sqrt(fy**2 + fx**2).clamp_min(1 / max(size))
    pink = torch.fft.irfft2(torch.fft.rfft2(white) * amplitude, s=size)
    return (pink - pink.mean((-2, -1), keepdim=True)) / pink.std((-2, -1), keepdim=True)
