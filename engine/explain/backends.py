"""Execute a joint graph: torch, eager or compiled, or in the runtime of an artifact."""

from __future__ import annotations

import tempfile
import threading
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from combicam.engine.explain.streams import streams
from combicam.errors import ArtifactError, first_line
from combicam.export.formats.aoti_file import aoti_device, aoti_origin, has_code
from combicam.export.formats.artifact import FORMATS, artifact_format, check_dtype
from combicam.export.formats.onnx_file import write_onnx
from combicam.export.formats.onnx_weights import separate_transposed
from combicam.export.formats.runtimes import default_runtime, openvino_reason
from combicam.export.passes.passes import for_eager_cuda
from combicam.export.trace.arithmetic import plain_arithmetic
from combicam.export.trace.trace import JointGraph
from combicam.requirements import onnxruntime, require

CPU = torch.device("cpu")
# A joint graph as a function: images[, targets] -> outputs, on the backend's device.
Execute = Callable[[Sequence[Tensor]], list[Tensor]]


def _no_grad(call: Callable[..., Sequence[Tensor]]) -> Execute:
    def execute(inputs: Sequence[Tensor]) -> list[Tensor]:
        with torch.no_grad(), plain_arithmetic(inputs[0].device):
            return list(call(*inputs))

    return execute


def with_tf32(execute: Execute) -> Execute:
    """The same with float32 rounded to TF32 where CUDA can."""

    def rounded(inputs: Sequence[Tensor]) -> list[Tensor]:
        with plain_arithmetic(inputs[0].device, tf32=True):
            return execute(inputs)

    return rounded


def eager_backend(joint: JointGraph, device: torch.device) -> Execute:
    """Run the graph operator by operator."""
    fuses = joint.signature.dtype != "float32" and has_fused_convolutions(device)
    return _no_grad(for_eager_cuda(joint.module) if fuses else joint.module)


def has_fused_convolutions(device: torch.device) -> bool:
    """Whether cuDNN computes convolutions there in 16 bit, with bias and ReLU."""
    if device.type != "cuda" or torch.version.hip is not None or not torch.backends.cudnn.enabled:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)  # of bfloat16


def compile_backend(joint: JointGraph) -> Execute:
    """Run the graph through ``torch.compile``; the first call of each batch size compiles."""
    return _no_grad(torch.compile(joint.module))


def torchscript_backend(path: Path, device: torch.device) -> Execute:
    """Run a TorchScript file.

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
    """Run an ONNX file in ONNX Runtime, with its CUDA provider on CUDA, else its CPU provider.

    Raises:
        ArtifactError: it cannot be loaded, or the CUDA provider is missing.
    """
    ort = onnxruntime()

    options = ort.SessionOptions()
    options.log_severity_level = 3
    # Calls at the same time have a thread each, and the others in common.
    options.intra_op_num_threads = streams() * (torch.get_num_threads() - 1) + 1
    # Memory patterns allocate everything again at the second call: twice the memory, seconds of
    # page faults, and no speed-up (EfficientNet-B4, batch 8: 6.2 against 3.4 GB).
    options.enable_mem_pattern = False
    providers: list[Any] = ["CPUExecutionProvider"]
    stream: torch.cuda.Stream | None = None
    if device.type == "cuda":
        if "CUDAExecutionProvider" not in ort.get_available_providers():
            raise ArtifactError(
                f"onnxruntime: expected the CUDA provider for device {device}, got only "
                f"{ort.get_available_providers()}; install onnxruntime-gpu or use device='cpu'"
            )
        if hasattr(ort, "preload_dlls"):  # ONNX Runtime >= 1.21
            ort.preload_dlls()
        stream = torch.cuda.Stream(device)
        cuda = {
            "device_id": device.index or 0,
            "user_compute_stream": str(stream.cuda_stream),
            "use_tf32": 0,
            # The default tries all algorithms at every new batch size.
            "cudnn_conv_algo_search": "HEURISTIC",
            # The default doubles its memory when it needs more.
            "arena_extend_strategy": "kSameAsRequested",
        }
        providers.insert(0, ("CUDAExecutionProvider", cuda))
    try:
        session = ort.InferenceSession(str(path), options, providers=providers)
    except Exception as error:
        raise ArtifactError(f"artifact: {path} cannot be loaded ({error})") from error
    if device.type == "cuda" and session.get_providers()[0] != "CUDAExecutionProvider":
        raise ArtifactError(
            "onnxruntime: the CUDA provider could not be started; its libraries must match the "
            "installed CUDA and cuDNN; use device='cpu' or another backend"
        )
    if stream is not None:
        taken = session.get_provider_options()["CUDAExecutionProvider"]
        stream = stream if taken.get("has_user_compute_stream") == "1" else None
    return onnxruntime_execute(session, device, stream)


# How ONNX Runtime's arena, CUDA, cuBLAS and cuDNN say so.
_OUT_OF_MEMORY = ("Failed to allocate memory", "out of memory", "_ALLOC_FAILED")
# Types of ONNX Runtime's inputs and outputs.
_TYPES = {
    "tensor(float)": (torch.float32, np.float32),
    "tensor(float16)": (torch.float16, np.float16),
    "tensor(int64)": (torch.int64, np.int64),
}


def onnxruntime_execute(
    session: Any, device: torch.device, stream: torch.cuda.Stream | None = None
) -> Execute:
    """A session as a function of tensors on its device, which it reads and writes in place.

    Args:
        session: whose outputs have the inputs' batch, and fixed shapes behind it. A call returns
            when they are complete.
        device: CUDA or CPU.
        stream: in which it computes on CUDA; None for one of its own, which torch cannot wait for.
    """
    inputs, outputs = session.get_inputs(), session.get_outputs()
    place = (device.type, device.index or 0)

    def execute(given: Sequence[Tensor]) -> list[Tensor]:
        binding = session.io_binding()
        kept = [tensor.to(device).contiguous() for tensor in given]
        batch = len(kept[0])
        found = [
            torch.empty((batch, *entry.shape[1:]), dtype=_TYPES[entry.type][0], device=device)
            for entry in outputs
        ]
        for entry, tensor in zip(inputs, kept, strict=True):
            kind = _TYPES[entry.type][1]
            binding.bind_input(entry.name, *place, kind, tuple(tensor.shape), tensor.data_ptr())
        for entry, tensor in zip(outputs, found, strict=True):
            kind = _TYPES[entry.type][1]
            binding.bind_output(entry.name, *place, kind, tuple(tensor.shape), tensor.data_ptr())
        if stream is not None:
            stream.wait_stream(torch.cuda.current_stream(device))
        elif device.type == "cuda":
            torch.cuda.current_stream(device).synchronize()
        try:
            session.run_with_iobinding(binding)
        except Exception as error:
            if any(words in str(error) for words in _OUT_OF_MEMORY):  # runs halve their batches
                raise torch.OutOfMemoryError(first_line(error)) from error
            raise
        binding.synchronize_outputs()
        return found

    return execute


def openvino_backend(path: Path, device: torch.device) -> Execute:
    """Run an ONNX file in OpenVINO, on the CPU, in float32 if the file is.

    Raises:
        MissingExtra: OpenVINO is not installed.
        ArtifactError: it cannot be loaded, or another device than the CPU.
    """
    openvino = require("openvino", extra="openvino", operation="backend 'openvino'")
    if device.type != "cpu":
        raise ArtifactError(
            f"openvino: expected device 'cpu', got {str(device)!r}; use backend 'onnxruntime'"
        )
    try:
        # Without the hint it computes in bfloat16 on CPUs that have it.
        threads = torch.get_num_threads() * streams()
        options = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": streams(),
        }
        core = openvino.Core()
        compiled = core.compile_model(core.read_model(_for_openvino(path)), "CPU", options)
    except RuntimeError as error:
        raise ArtifactError(
            f"artifact: {path} cannot be loaded ({openvino_reason(error)}); export it with "
            "runtime='openvino' (--for), or use backend 'onnxruntime'"
        ) from error
    requests = threading.local()  # a request serves one call at a time

    def execute(inputs: Sequence[Tensor]) -> list[Tensor]:
        if not hasattr(requests, "mine"):
            requests.mine = compiled.create_infer_request()
        feed = [np.ascontiguousarray(t.cpu().numpy()) for t in inputs]
        found = requests.mine.infer(dict(enumerate(feed)), share_inputs=True)
        return [torch.from_numpy(np.array(found[output])) for output in compiled.outputs]

    return execute


def _for_openvino(path: Path) -> str | bytes:
    """The file, or its content as OpenVINO reads it rightly, if earlier versions wrote it.

    Raises:
        ArtifactError: weights beside the graph, which cannot be changed in passing.
    """
    import onnx_ir as ir  # slow to import

    model = ir.load(path)
    if not separate_transposed(model):
        return str(path)
    if path.with_name(f"{path.name}.data").exists():
        raise ArtifactError(
            f"openvino: expected {path} as this version of combicam exports it, got one of an "
            "earlier version, whose gradients OpenVINO mistakes; export it again, or use backend "
            "'onnxruntime'"
        )
    content: bytes = ir.to_proto(model).SerializeToString()
    return content


def _one_at_a_time(call: Callable[..., Sequence[Tensor]]) -> Callable[..., Sequence[Tensor]]:
    """The call, whose threads take turns; on a device only the launches do."""
    turn = threading.Lock()

    def run(*inputs: Tensor) -> Sequence[Tensor]:
        with turn:
            return call(*inputs)

    return run


def aoti_backend(path: Path, device: torch.device) -> Execute:
    """Run an AOTInductor package, on the type of device that it was compiled for.

    Raises:
        ArtifactError: it cannot be loaded, or was compiled for another device.
    """
    from torch._inductor import aoti_load_package

    compiled = aoti_device(path)
    if compiled.type != device.type:
        raise ArtifactError(
            f"artifact: expected device {compiled.type!r}, for which {path} was compiled, got "
            f"{str(device)!r}; export it again with an explainer on that device"
        )
    try:
        if not has_code(path):
            raise RuntimeError("there is no compiled code in it")
        if device.type != "cuda":
            return _no_grad(aoti_load_package(str(path)))
        # With locks of its own a package waits until the device has finished a call before it
        # begins the next; a CUDA graph cannot record that.
        package = aoti_load_package(
            str(path), run_single_threaded=True, device_index=device.index or 0
        )
        return _no_grad(_one_at_a_time(package))
    except RuntimeError as error:
        raise ArtifactError(
            f"artifact: {path} cannot be loaded ({first_line(error)}); it was compiled with "
            f"{aoti_origin(path)}, this is torch {torch.__version__}: export it again here"
        ) from error


LOADERS = {
    "torchscript": torchscript_backend,
    "onnxruntime": onnxruntime_backend,
    "openvino": openvino_backend,
    "aoti": aoti_backend,
}


def file_backend(joint: JointGraph, backend: str, device: torch.device) -> Execute:
    """Run a joint graph in the runtime of an artifact, through a temporary file.

    Raises:
        ValueError: a dtype that the format cannot store.
        TraceError: the graph cannot be written in this format.
    """
    suffix, form = next((s, form) for s, form in FORMATS.items() if backend in form.runtimes)
    check_dtype(suffix, joint.signature.dtype)
    with tempfile.TemporaryDirectory(prefix="combicam-") as folder, plain_arithmetic(CPU, device):
        path = Path(folder) / f"graph{suffix}"
        write = form.write
        if suffix == ".onnx":
            runtime = "openvino" if backend == "openvino" else default_runtime(device.type)
            write = partial(write_onnx, runtime=runtime)
        write(joint if form.is_compiled else joint.portable(), path, "")
        return LOADERS[backend](path, device)


def artifact_backend(path: Path, backend: str, device: torch.device) -> Execute:
    """Run a file in its runtime.

    Raises:
        ValueError: a backend that does not run such files.
        ArtifactError: it cannot be loaded.
    """
    fitting = artifact_format(path).runtimes
    if backend not in ("auto", *fitting):
        raise ValueError(
            f"Explainer.load: expected backend 'auto' or {' or '.join(map(repr, fitting))} for "
            f"{path.suffix}, got {backend!r}"
        )
    return LOADERS[fitting[0] if backend == "auto" else backend](path, device)
