"""Write a model repository for NVIDIA Triton Inference Server."""

from __future__ import annotations

import json
import os
import re
import tempfile
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from combicam.engine.explain.artifact_export import VERIFY_IMAGES, export
from combicam.engine.explain.artifact_verify import TOLERANCES, Verification
from combicam.engine.explain.explainer import Explainer
from combicam.engine.explain.sessions import ModelSession, Request
from combicam.engine.serving.golden import check_golden, make_golden, write_golden
from combicam.engine.serving.model_config import batched_tensors, config_text
from combicam.engine.serving.server_readme import readme_text
from combicam.errors import ArtifactError
from combicam.export.formats.artifact import Description
from combicam.export.preprocess import Preprocess
from combicam.export.trace.trace import JointGraph
from combicam.requirements import onnxruntime

MAX_BATCH_SIZE = 8
LABELS = "labels.txt"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_PHOTO_STEPS = (
    "decode; turn upright by EXIF orientation; {kind}, transparency on white, 16 bits scaled to 8",
    "resize to input_size (H, W) with the antialiased filter 'interpolation': 'squash' scales the "
    "whole image; 'crop' scales it to cover input_size / crop_pct and crops the centre",
)
_NORMALISE = "x / 255, minus mean, divided by std, per channel"
_KINDS = {1: "grey, 0.299 R + 0.587 G + 0.114 B", 3: "RGB"}


@dataclass(frozen=True)
class ServedModel:
    """A model in a repository.

    Attributes:
        path: its folder.
        name: of the model for clients.
        max_batch_size: the largest batch that the server forms.
        verification: of the ONNX file against the model; None without ``verify``.
    """

    path: Path
    name: str
    max_batch_size: int
    verification: Verification | None


def export_triton_repository(
    explainer: Explainer,
    repository: str | Path,
    *,
    name: str | None = None,
    max_batch_size: int = MAX_BATCH_SIZE,
    target_input: str = "classes",
    opset: int | None = None,
    weights: str = "float32",
    verify: int | bool = VERIFY_IMAGES,
    tolerance: float | None = None,
    allow_disagreement: bool = False,
) -> ServedModel:
    """Write a model repository: ONNX file, server configuration, labels, client, golden outputs.

    ``REPOSITORY/NAME`` is written atomically. Its README.md explains how to start and check the
    server.

    Args:
        explainer: of a model; one that was loaded from a file has no model to export.
        repository: folder of models; created if its parent exists.
        name: on the server; default: the model's name.
        max_batch_size: the largest batch that the server forms, >= 1.
        target_input, opset, weights, verify, tolerance, allow_disagreement: as for
            :func:`~combicam.engine.explain.artifact_export.export`; the golden inputs are
            verified, too.

    Returns:
        The model's folder, name and verification.

    Raises:
        ValueError: a name or batch size that the server does not accept, an unknown target_input,
            or an existing model.
        FileNotFoundError: the repository's parent does not exist.
        ArtifactError: an explainer without a model, or a file that disagrees with it.
        TraceError: the graph cannot be written as ONNX.

    Source: Triton Inference Server, model repository and model configuration.
    """
    request = Request(target_input, explainer.spec.targets)
    repository = Path(repository).resolve()
    name = model_name(explainer.description.model) if name is None else name
    check_served(name, max_batch_size)
    check_repository(repository, name)
    # Outside the repository: the server takes every folder in it for a model.
    workshop = repository if os.path.ismount(repository) else repository.parent
    with tempfile.TemporaryDirectory(prefix=".combicam-", dir=workshop) as folder:
        draft = Path(folder) / name  # with ordinary permissions, unlike its parent
        (draft / "1").mkdir(parents=True)
        graph = draft / "1" / "model.onnx"
        verification = export(
            explainer,
            graph,
            target_input=target_input,
            opset=opset,
            weights=weights,
            verify=verify,
            tolerance=tolerance,
            allow_disagreement=allow_disagreement,
        )
        assert isinstance(explainer.session, ModelSession)  # export checked
        joint = explainer.session.joint(request, for_onnx=True)
        limit = TOLERANCES[joint.signature.dtype] if tolerance is None else tolerance
        golden = make_golden(joint, explainer.session.module, explainer.device)
        runtime = _runtime(graph)
        if verify and not allow_disagreement:
            check_golden(golden, runtime, limit)
        write_golden(golden, draft / "golden", limit)
        served = ServedModel(repository / name, name, max_batch_size, verification)
        _write_texts(draft, explainer.description, joint, served, runtime, limit)
        repository.mkdir(exist_ok=True)
        try:
            draft.rename(served.path)  # replaces an empty folder
        except OSError as error:
            check_repository(repository, name)  # another process was faster
            raise ArtifactError(f"triton repository: {served.path}: {error}") from error
    return served


def model_name(model: str) -> str:
    """A model's name on the server: ``timm:resnet50`` -> ``resnet50``."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", model.rpartition(":")[2]).lstrip("._-") or "model"


def check_served(name: str, max_batch_size: int) -> None:
    """Check that the server accepts the name and batch size.

    Raises:
        ValueError: it does not.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(
            "triton repository: expected a model name of letters, digits, '.', '_' and '-', got "
            f"{name!r}; pass name={model_name(name)!r}"
        )
    if isinstance(max_batch_size, bool) or not isinstance(max_batch_size, int):
        raise ValueError(
            f"triton repository: expected max_batch_size as an int, got {max_batch_size!r}; pass "
            "the largest batch that fits the server's memory"
        )
    if max_batch_size < 1:
        raise ValueError(
            f"triton repository: expected max_batch_size >= 1, got {max_batch_size}; pass the "
            "largest batch that fits the server's memory, 1 for single images"
        )


def check_repository(repository: Path, name: str | None = None) -> None:
    """Check that the repository can be written, before any work is done.

    Raises:
        FileNotFoundError: the repository's parent does not exist.
        ValueError: the repository is a file, or has the model already.
    """
    repository = repository.resolve()
    if not repository.parent.is_dir():
        raise FileNotFoundError(
            f"triton repository: expected an existing folder, got {repository.parent}; make it"
        )
    if repository.exists() and not repository.is_dir():
        raise ValueError(f"triton repository: expected a folder, got the file {repository}")
    path = repository / name if name else None
    if path and path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(
            f"triton repository: expected no model {name!r} in {repository} yet, got {path} with "
            "files in it; remove it, or choose another name or folder"
        )


def _runtime(graph: Path) -> Any:
    """An ONNX Runtime session of the file, to read its inputs and outputs."""
    ort = onnxruntime()

    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])


def _write_texts(
    draft: Path,
    description: Description,
    joint: JointGraph,
    served: ServedModel,
    runtime: Any,
    limit: float,
) -> None:
    """Write everything but the graph and golden/."""
    inputs = batched_tensors(runtime.get_inputs())
    outputs = batched_tensors(runtime.get_outputs())
    text = config_text(served.name, inputs, outputs, served.max_batch_size, LABELS)
    (draft / "config.pbtxt").write_text(text, encoding="utf-8")
    _write_labels(draft / LABELS, description)
    _write_preprocessing(draft / "preprocessing.json", description, joint, served)
    # The client does not need combicam.
    client = resources.files("combicam.engine.serving").joinpath("client.py").read_text("utf-8")
    (draft / "client.py").write_text(client, encoding="utf-8")
    text = readme_text(description, joint, served.name, (*inputs, *outputs), limit)
    (draft / "README.md").write_text(text, encoding="utf-8")


def _write_labels(path: Path, description: Description) -> None:
    """Write a class name per line; the class number if it has no name."""
    table = description.classes
    names = [
        (" ".join(table.name(i).split()) if table else "") or str(i)
        for i in range(description.signature.classes)
    ]
    path.write_text("\n".join(names) + "\n", encoding="utf-8")


def _steps(preprocess: Preprocess) -> list[str]:
    """How images become inputs, in words."""
    kind = _KINDS.get(preprocess.channels)
    steps = [step.format(kind=kind) for step in _PHOTO_STEPS] if kind else []
    if preprocess.takes_bytes:
        steps.append(f"{_NORMALISE}{' R, G, B' if preprocess.channels == 3 else ''}")
    else:
        steps.append("normalised as the model was trained")
    return [*steps, f"float32 [B,{preprocess.channels},H,W], C order"]


def _write_preprocessing(
    path: Path, description: Description, joint: JointGraph, served: ServedModel
) -> None:
    values = {
        "format": 2,  # in 1, any negative target in column k meant the k-th best class
        "model": served.name,
        "max_batch_size": served.max_batch_size,
        **description.preprocess.to_dict(),
        "channels": description.signature.channels,
        "steps": _steps(description.preprocess),
        "target_input": joint.signature.target_input,
        "targets": joint.spec.targets,
        "classes": joint.signature.classes,
        "cam": joint.spec.to_dict(),
        "note": description.note,
    }
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
