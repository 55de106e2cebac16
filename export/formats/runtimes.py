"""Know the programs that run ONNX files: what each likes, and what a file has that it lacks.

The passes that each likes are in :mod:`combicam.export.passes.passes`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from combicam.errors import ArtifactError, MissingExtra, first_line
from combicam.export.formats import operator_tables as tables
from combicam.export.spec import check_choice
from combicam.requirements import onnxruntime, require

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
    try:
        model = ir.load(path)
    except Exception as error:  # of protobuf, and of onnx_ir
        raise ArtifactError(f"check: {path} is not an ONNX file ({first_line(error)})") from error
    basis, found = RUNTIMES[runtime].find(path, model)
    concerns = sorted(found, key=lambda concern: concern.effect)
    command = trtexec(path, model) if runtime == "tensorrt" else ""
    return RuntimeCheck(runtime, len(model.graph), basis, tuple(concerns), command)


def check_runtime(runtime: str | None, suffix: str) -> None:
    """Check that a file of this suffix can be for this runtime; None is the default.

    Raises:
        ValueError: it cannot.
    """
    if runtime is None:
        return
    check_choice("export", "runtime", runtime, tuple(RUNTIMES))
    if suffix != ".onnx":
        raise ValueError(
            f"export: expected an .onnx file for runtime {runtime!r}, got {suffix!r}; .ts and .pt2 "
            "are for torch"
        )


def default_runtime(device: str) -> str:
    """Which runs ONNX files on a type of device, ``cuda`` or another."""
    return "onnxruntime-cuda" if device == "cuda" else DEFAULT_RUNTIME


def trtexec(path: Path, model: ir.Model) -> str:
    """The command that builds an engine of a file, for batches from 1 to 64."""
    shapes = {}
    for value in model.graph.inputs:
        if value.shape is not None and value.name:
            shapes[value.name] = [n if isinstance(n, int) else 0 for n in value.shape]
    profile = []
    for kind, batch in (("min", 1), ("opt", 32), ("max", 64)):
        sizes = (
            f"{name}:{'x'.join(str(n or batch) for n in shape)}" for name, shape in shapes.items()
        )
        profile.append(f"--{kind}Shapes={','.join(sizes)}")
    halves = any(_is_half(value) for node in model.graph for value in node.outputs)
    types = "--stronglyTyped" if halves else "--noTF32"  # compute as the file says
    engine = path.with_suffix(".plan").name
    return " ".join([f"trtexec --onnx={path.name} --saveEngine={engine} {types}", *profile])


def _counted(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


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
        for operator, count in _counted(model).items():
            if operator not in tables.CUDA_OPERATORS and not _is_function(operator):
                why = "has no CUDA kernel: it runs on the CPU, and its tensors are copied"
                yield Concern("slow", operator, count, why)

    return f"by the list of kernels of {tables.CUDA_PROVIDER}", found()


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
    basis = f"by the operator table of {tables.TENSORRT}; no TensorRT has run it"
    return basis, _lacking_in_tensorrt(model)


def _lacking_in_tensorrt(model: ir.Model) -> Iterator[Concern]:
    first, last = tables.TENSORRT_OPSETS
    opset = model.opset_imports.get("", first)
    if not first <= opset <= last:
        yield Concern("missing", f"opset {opset}", 0, f"it takes {first} to {last}")
    faults: Counter[tuple[str, str, str]] = Counter()
    for node in model.graph:
        for effect, why in _node_faults(node):
            faults[effect, node.op_type, why] += 1
    for (effect, operator, why), count in faults.items():
        yield Concern(effect, operator, count, why)


def _node_faults(node: ir.Node) -> Iterator[tuple[str, str]]:
    """What TensorRT has against a node: effect and reason."""
    operator = node.op_type
    types = tables.TENSORRT_OPERATORS.get(operator)
    if types is None or node.domain not in ("", "ai.onnx"):
        yield "missing", "it has no such operator"
        return
    used = [value for value in node.outputs if value.uses() or value.is_graph_output()]
    if operator in ("MaxPool", "LayerNormalization") and used != [node.outputs[0]]:
        yield "missing", "it has the first output only"
        used = used[:1]
    made = {value.dtype.name for value in used if value.dtype is not None}
    refused = sorted(made - set(types) - {_OTHER_OUTPUTS.get(operator)})
    if refused:
        yield "missing", f"it computes no {', '.join(refused)}"
    for index in tables.CONSTANT_INPUTS.get(operator, ()):
        if index < len(node.inputs) and not _is_constant(node.inputs[index]):
            yield "missing", f"its input {index} must be known when the engine is built"
    if operator in ("Conv", "ConvTranspose") and not _is_constant(node.inputs[1]):
        yield (
            "slow",
            "its weight is computed, no initializer; write it with runtime='tensorrt' (--for)",
        )
    if operator in ("MaxPool", "AveragePool", "LpPool"):
        if set(_value(node, "dilations") or (1,)) != {1}:
            yield "missing", "it has no dilations"
        if len(_value(node, "kernel_shape") or (1, 1)) not in (2, 3):
            yield "missing", "it pools two or three axes"
    if operator == "ScatterND" and _value(node, "reduction") not in (None, "none"):
        yield "missing", "it scatters without a reduction only"
    if operator == "TopK":
        k = ir.convenience.get_const_tensor(node.inputs[1]) if node.inputs[1] else None
        if _value(node, "sorted") == 0 or (
            k is not None and int(k.numpy().max()) > tables.MOST_TOP
        ):
            yield "missing", f"it sorts, and finds at most {tables.MOST_TOP}"
    if operator == "Resize":
        for name, known in tables.RESIZE.items():
            if _value(node, name) is not None and _value(node, name) not in known:
                yield "missing", f"it has no {name} {_value(node, name)}"
        if _value(node, "antialias"):
            yield "missing", "it has no antialiasing"


# Of comparisons and searches, whose results have other types than what they read.
_COMPARISONS = ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "IsInf", "IsNaN")
_OTHER_OUTPUTS = {**{name: "BOOL" for name in _COMPARISONS}, "NonZero": "INT64"}


def _value(node: ir.Node, name: str) -> Any:
    attribute = node.attributes.get(name)
    return None if attribute is None else attribute.value


def _is_constant(value: ir.Value | None) -> bool:
    return value is None or ir.convenience.get_const_tensor(value) is not None


RUNTIMES: dict[str, Runtime] = {
    "onnxruntime-cpu": Runtime(_find_cpu),
    "onnxruntime-cuda": Runtime(_find_cuda),
    "openvino": Runtime(_find_openvino),
    "tensorrt": Runtime(_find_tensorrt, computes_weights=False),
    "web": Runtime(_find_web),
}
