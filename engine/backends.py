"""What executes a joint graph: torch eager or compiled, TorchScript, ONNX Runtime."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from combicam.errors import ArtifactError
from combicam.export.onnx_file import write_onnx
from combicam.export.snapshot import no_autocast
from combicam.export.torchscript_file import write_torchscript
from combicam.export.trace import JointGraph, example_inputs

BACKENDS = ("auto", "eager", "compile", "torchscript", "onnxruntime", "aoti")
# A joint graph as a function: images[, targets] -> outputs, on the backend's device.
Execute = Callable[[Sequence[Tensor]], list[Tensor]]


def _no_grad(call: Callable[..., Sequence[Tensor]]) -> Execute:
    def execute(inputs: Sequence[Tensor]) -> list[Tensor]:
        with torch.no_grad(), no_autocast(inputs[0].device):
            return list(call(*inputs))

    return execute


def eager_backend(joint: JointGraph) -> Execute:
    """The graph as it is, operator by operator."""
    return _no_grad(joint.module)


def compile_backend(joint: JointGraph) -> Execute:
    """The graph through ``torch.compile``; the first call of a batch size compiles."""
    return _no_grad(torch.compile(joint.module))


def aoti_backend(joint: JointGraph) -> Execute:
    """A portable graph through AOTInductor: compiled once for any batch size, no Python inside."""
    from torch._inductor import aoti_compile_and_package, aoti_load_package

    inputs = example_inputs(joint)
    batch = torch.export.Dim("batch")
    shapes = tuple({0: batch} for _ in inputs)
    with torch.no_grad(), tempfile.TemporaryDirectory(prefix="combicam-") as folder:
        program = torch.export.export(joint.module, inputs, dynamic_shapes=shapes, strict=False)
        package = aoti_compile_and_package(program, package_path=f"{folder}/graph.pt2")
        return _no_grad(aoti_load_package(package))


def torchscript_backend(path: Path, device: torch.device) -> Execute:
    """A TorchScript file.

    Raises:
        ArtifactError: it cannot be loaded.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = torch.jit.load(str(path), map_location=device)
    except RuntimeError as error:
        raise ArtifactError(f"artifact: {path} cannot be loaded ({error})") from error
    return _no_grad(module)


def onnxruntime_backend(path: Path, device: torch.device) -> Execute:
    """An ONNX file in ONNX Runtime: its CUDA provider for a CUDA device, else its CPU provider.

    Raises:
        ArtifactError: it cannot be loaded, or the CUDA provider is not there.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    providers: list[Any] = ["CPUExecutionProvider"]
    if device.type == "cuda":
        if "CUDAExecutionProvider" not in ort.get_available_providers():
            raise ArtifactError(
                f"onnxruntime: expected the CUDA provider for device {device}, got only "
                f"{ort.get_available_providers()}; install onnxruntime-gpu or take device='cpu'"
            )
        if hasattr(ort, "preload_dlls"):  # ONNX Runtime >= 1.21
            ort.preload_dlls()
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": device.index or 0}))
    try:
        session = ort.InferenceSession(str(path), options, providers=providers)
    except Exception as error:
        raise ArtifactError(f"artifact: {path} cannot be loaded ({error})") from error
    if device.type == "cuda" and session.get_providers()[0] != "CUDAExecutionProvider":
        raise ArtifactError(
            "onnxruntime: the CUDA provider could not be started; its libraries must match the "
            "installed CUDA and cuDNN. Take device='cpu' or another backend"
        )
    names = [entry.name for entry in session.get_inputs()]

    def execute(inputs: Sequence[Tensor]) -> list[Tensor]:
        feed = {
            n: np.ascontiguousarray(t.cpu().numpy()) for n, t in zip(names, inputs, strict=True)
        }
        return [torch.from_numpy(np.asarray(o)).to(device) for o in session.run(None, feed)]

    return execute


def portable_backend(joint: JointGraph, backend: str, device: torch.device) -> Execute:
    """A portable joint graph in the runtime of an artifact, by way of a temporary file."""
    with tempfile.TemporaryDirectory(prefix="combicam-") as folder:
        if backend == "onnxruntime":
            path = Path(folder) / "graph.onnx"
            write_onnx(joint, path, "")
            return onnxruntime_backend(path, device)
        path = Path(folder) / "graph.ts"
        write_torchscript(joint, path, "")
        return torchscript_backend(path, device)


def artifact_backend(path: Path, backend: str, device: torch.device) -> Execute:
    """The runtime that fits a file.

    Raises:
        ValueError: a backend that does not execute such files.
    """
    fitting = {".onnx": "onnxruntime", ".ts": "torchscript"}[path.suffix]
    if backend not in ("auto", fitting):
        raise ValueError(
            f"Explainer.load: expected backend 'auto' or {fitting!r} for {path.suffix}, "
            f"got {backend!r}"
        )
    make = onnxruntime_backend if fitting == "onnxruntime" else torchscript_backend
    return make(path, device)
