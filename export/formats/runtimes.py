"""Know the programs that run ONNX files: what each likes, and what a file has that it lacks.

The passes that each likes are in :mod:`combicam.export.passes.passes`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from combicam.errors import ArtifactError, MissingExtra, first_line
from combicam.export.formats import tensorrt
from combicam.export.formats.cuda_operators import CUDA_OPERATORS, CUDA_PROVIDER
from combicam.export.spec import check_choice
from combicam.lazy import lazy_module
from combicam.requirements import onnxruntime, require

if TYPE_CHECKING:
    import onnx_ir as ir
else:  # slow to import: only what looks into a file does
    ir = lazy_module("onnx_ir")

DEFAULT_RUNTIME = "onnxruntime-cpu"
# Visitors of a site wait for larger files.
_LARGE_DOWNLOAD = 50_000_000


@dataclass(frozen=True)
class Concern:
    """What a runtime lacks or runs slowly.

    Attributes:
        effect: ``missing``: the runtime refuses the file; ``slow``: it does not.
        what: an operator or a part of the file.
        nodes: how many nodes of the file; 0 for what is no node.
        why: in words.
    """

    effect: str
    what: str
    nodes: int
    why: str

    def __str__(self) -> str:
        count = f", {self.nodes} nodes" if self.nodes > 1 else ""
        return f"{self.effect}: {self.what}{count}: {self.why}"


@dataclass(frozen=True)
class RuntimeCheck:
    """A file compared with what a runtime has.

    Attributes:
        runtime: a key of ``RUNTIMES``.
        nodes: of the file.
        basis: how it was checked, in words: by opening the file, or by which table.
        concerns: what is missing or slow there, what is missing first.
        command: that builds or tries the file there; empty if there is none.
    """

    runtime: str
    nodes: int
    basis: str
    concerns: tuple[Concern, ...]
    command: str = ""

    @property
    def runs(self) -> bool:
        """Whether nothing is missing."""
        return all(concern.effect != "missing" for concern in self.concerns)

    def __str__(self) -> str:
        missing = [str(concern) for concern in self.concerns if concern.effect == "missing"]
        return "; ".join(missing) if missing else f"{self.nodes} nodes, nothing is missing"


Findings = tuple[str, Iterator[Concern]]  # the basis, and what was found


@dataclass(frozen=True)
class Runtime:
    """A program that runs ONNX files.

    Attributes:
        find: what it lacks of a file: path and content -> basis, concerns.
        computes_weights: as it loads, so that the file needs each only once.
    """

    find: Callable[[Path, ir.Model], Findings]
    computes_weights: bool = True


def check_file(path: str | Path, runtime: str) -> RuntimeCheck:
    """Say what an ONNX file has that a runtime lacks, or runs slowly.

    Args:
        path: of any ONNX file.
        runtime: ``onnxruntime-cpu``, ``onnxruntime-cuda``, ``openvino``, ``tensorrt`` or ``web``.

    Raises:
        ValueError: an unknown runtime, or a file that is not .onnx.
        FileNotFoundError: no such file.
        ArtifactError: the file cannot be read.
    """
    path = Path(path)
    check_runtime(runtime, path.suffix)
    if not path.is_file():
        raise FileNotFoundError(f"check: expected a file, got {path}")
    model = _read(path)
    basis, found = RUNTIMES[runtime].find(path, model)
    concerns = sorted(found, key=lambda concern: concern.effect)
    command = tensorrt.trtexec(path, model) if runtime == "tensorrt" else ""
    return RuntimeCheck(runtime, len(model.graph), basis, tuple(concerns), command)


def _read(path: Path) -> ir.Model:
    """The graph, with types.

    Raises:
        ArtifactError: it is not ONNX.
    """
    try:
        model = ir.load(path)
        if any(value.dtype is None for node in model.graph for value in node.outputs):
            proto = onnx.load(str(path), load_external_data=False)
            model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    except Exception as error:  # of protobuf, onnx and onnx_ir
        raise ArtifactError(f"check: {path} is not an ONNX file ({first_line(error)})") from error
    return model


def check_runtime(runtime: str | None, suffix: str) -> None:
    """Check that a file of this suffix can be for this runtime; None is the default.

    Raises:
        ValueError: it cannot.
    """
    if runtime is None:
        return
    check_choice("ONNX file", "runtime", runtime, tuple(RUNTIMES))
    if suffix != ".onnx":
        raise ValueError(
            f"ONNX file: expected an .onnx file for runtime {runtime!r}, got {suffix!r}; .ts and "
            ".pt2 are for torch"
        )


def default_runtime(device: str) -> str:
    """Which runs ONNX files on a type of device, ``cuda`` or another."""
    return "onnxruntime-cuda" if device == "cuda" else DEFAULT_RUNTIME


def _opened(path: Path) -> str:
    """What ONNX Runtime's CPU provider says against a file; empty if it opens it."""
    ort = onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # of ONNX Runtime, in types of its own
        return first_line(error)
    return ""


def _refused(message: str) -> Iterator[Concern]:
    if message:
        yield Concern("missing", "the file", 0, message)


def _on_processors(model: ir.Model) -> Iterator[Concern]:
    """What ONNX Runtime's CPU kernels, also those of WebAssembly, do slowly."""
    scattered = [node for node in model.graph if node.op_type == "ScatterElements"]
    large = [node for node in scattered if _cells(node.outputs[0]) > 1 << 14]
    if large:
        yield Concern("slow", "ScatterElements", len(large), "scatters on one core")
    halves = sum(_is_half(value) for node in model.graph for value in node.outputs)
    if halves:
        why = "its arithmetic is in float32: every operator converts; export in float32, with "
        yield Concern("slow", "float16", halves, f"{why}weights='float16' for a small file")


def _cells(value: ir.Value) -> int:
    """Numbers of a value per image; a dimension that is unknown counts as one."""
    cells = 1
    for size in list(value.shape or ())[1:]:
        cells *= size if isinstance(size, int) else 1
    return cells


def _is_half(value: ir.Value) -> bool:
    return value.dtype == ir.DataType.FLOAT16


def _find_cpu(path: Path, model: ir.Model) -> Findings:
    def found() -> Iterator[Concern]:
        yield from _refused(_opened(path))
        yield from _on_processors(model)

    return f"by opening it in ONNX Runtime {onnxruntime().__version__}", found()


def _find_web(path: Path, model: ir.Model) -> Findings:
    def found() -> Iterator[Concern]:
        yield from _refused(_opened(path))
        yield from _on_processors(model)
        size = path.stat().st_size
        if size > _LARGE_DOWNLOAD:
            why = "every visitor downloads it; weights='float16' (--weights) halves it"
            yield Concern("slow", f"a file of {size / 1e6:.0f} MB", 0, why)

    what = f"by opening it in ONNX Runtime {onnxruntime().__version__}"
    return f"{what}, whose CPU kernels WebAssembly has", found()


def _find_cuda(path: Path, model: ir.Model) -> Findings:
    def found() -> Iterator[Concern]:
        yield from _refused(_opened(path))
        for operator, count in Counter(node.op_type for node in model.graph).items():
            if operator not in CUDA_OPERATORS and not _is_function(operator):
                why = "has no CUDA kernel: it runs on the CPU, and its tensors are copied"
                yield Concern("slow", operator, count, why)

    return f"by the list of kernels of {CUDA_PROVIDER}", found()


def _is_function(operator: str) -> bool:
    """Whether an operator is defined by others, which a runtime takes instead; or is a constant."""
    try:
        schema: Any = onnx.defs.get_schema(operator)
    except onnx.defs.SchemaError:
        return False
    return operator == "Constant" or bool(
        schema.has_function or schema.has_context_dependent_function
    )


def _find_openvino(path: Path, model: ir.Model) -> Findings:
    try:
        openvino = require("openvino", extra="openvino", operation="check")
    except MissingExtra:
        return "by nothing: OpenVINO is not installed (pip install 'combicam[openvino]')", iter(())

    def found() -> Iterator[Concern]:
        core = openvino.Core()
        try:
            read = core.read_model(str(path))
            placed = core.query_model(read, "CPU")
        except RuntimeError as error:
            yield from _refused(openvino_reason(error))
            return
        lacking = Counter(
            node.get_type_name()
            for node in read.get_ops()
            if node.get_friendly_name() not in placed
        )
        for operator, count in lacking.items():
            yield Concern("missing", operator, count, "OpenVINO's CPU plugin does not have it")
        scattered = [node for node in model.graph if node.op_type == "ScatterElements"]
        large = sum(_cells(node.outputs[0]) > 1 << 14 for node in scattered)
        if large:
            why = "scatters slowly; write the file with runtime='openvino' (--for)"
            yield Concern("slow", "ScatterElements", large, why)

    return f"by opening it in OpenVINO {openvino.get_version().partition('-')[0]}", found()


def openvino_reason(error: BaseException) -> str:
    """The telling line of an error of OpenVINO, whose first lines are places in its source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    for line in lines:
        if line.startswith("-- No conversion rule"):
            return line.removeprefix("-- ")
    telling = [line for line in lines if not line.startswith(("Exception from", "Check '"))]
    return (telling or lines or [type(error).__name__])[0]


def _find_tensorrt(path: Path, model: ir.Model) -> Findings:
    basis = f"by the operator table of {tensorrt.VERSION}; no TensorRT has run it"
    return basis, _lacking_in_tensorrt(model)


def _lacking_in_tensorrt(model: ir.Model) -> Iterator[Concern]:
    first, last = tensorrt.OPSETS
    opset = model.opset_imports.get("", first)
    if not first <= opset <= last:
        yield Concern("missing", f"opset {opset}", 0, f"it takes {first} to {last}")
    faults: Counter[tuple[str, str, str]] = Counter()
    for node in model.graph:
        for effect, why in tensorrt.node_faults(node):
            faults[effect, node.op_type, why] += 1
    for (effect, operator, why), count in faults.items():
        yield Concern(effect, operator, count, why)


RUNTIMES: dict[str, Runtime] = {
    "onnxruntime-cpu": Runtime(_find_cpu),
    "onnxruntime-cuda": Runtime(_find_cuda),
    "openvino": Runtime(_find_openvino),
    "tensorrt": Runtime(_find_tensorrt, computes_weights=False),
    "web": Runtime(_find_web),
}
