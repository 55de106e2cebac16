"""Choose the ONNX opset of a file: newer ones by the exporter, older ones by rewriting nodes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from torch import fx

from combicam.errors import TraceError
from combicam.export.trace.origins import origin_of
from combicam.lazy import lazy_module
from combicam.requirements import onnxruntime

if TYPE_CHECKING:
    import onnx_ir as ir
else:  # slow to import: only what looks into a file does
    ir = lazy_module("onnx_ir")

OLDEST_OPSET, DEFAULT_OPSET = 13, 18
# A one-hot matrix replaces a scattered sum in files that are older than it, up to this size.
MOST_ONE_HOT = 1 << 22
REDUCTIONS = (
    *("ReduceMax", "ReduceMin", "ReduceMean", "ReduceProd", "ReduceL1", "ReduceL2"),
    *("ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare"),
)


@cache
def newest_opset() -> int:
    """The newest opset that the installed exporter writes and ONNX Runtime runs."""
    newest = onnx.defs.onnx_opset_version()
    return next((n for n in range(newest, DEFAULT_OPSET, -1) if _is_supported(n)), DEFAULT_OPSET)


def _is_supported(opset: int) -> bool:
    """Whether the exporter converts a graph of one node to an opset that ONNX Runtime runs."""
    from onnxscript.version_converter import convert_version  # slow to import

    ends = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1]) for n in "xy"]
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "relu", ends[:1], ends[1:])
    imports = [onnx.helper.make_opsetid("", DEFAULT_OPSET)]
    model = ir.from_proto(onnx.helper.make_model(graph, opset_imports=imports, ir_version=10))
    ort = onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        convert_version(model, target_version=opset, fallback=False)
        file = ir.to_proto(model).SerializeToString()
        ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # of either, in types of their own
        if "opset" not in str(error) and "version" not in str(error):
            raise
        return False
    return bool(model.opset_imports[""] == opset)


def check_opset(opset: int | None, suffix: str) -> None:
    """Check that a file of this suffix can have this opset; None is the default.

    Raises:
        ValueError: it cannot.
    """
    if opset is None:
        return
    if suffix != ".onnx":
        raise ValueError(f"export: expected no opset for {suffix}, got {opset}; only .onnx has one")
    if isinstance(opset, bool) or not isinstance(opset, int):
        raise ValueError(f"export: expected opset as an int, got {opset!r}; pass 17, for example")
    if not OLDEST_OPSET <= opset <= newest_opset():
        raise ValueError(
            f"export: expected opset from {OLDEST_OPSET} to {newest_opset()}, the newest of the "
            f"installed onnx, onnxscript and onnxruntime, got {opset}; the default is "
            f"{DEFAULT_OPSET}"
        )


def check_written(model: ir.Model, opset: int) -> None:
    """Check that the exporter wrote the opset that it was asked for.

    Raises:
        TraceError: it did not.
    """
    found = model.opset_imports[""]
    if found != opset:
        raise TraceError(
            f"export: expected opset {opset}, got {found} of the installed exporter; choose an "
            f"opset from {OLDEST_OPSET} to {found}"
        )


def lower_opset(model: ir.Model, opset: int) -> None:
    """Rewrite a model of opset 18 for an older one, in place. Cases:

    1. a node whose form has changed, or that did not exist, becomes older ones (``RULES``);
    2. an attribute that did not exist and has its default is removed;
    3. a node that the older opset accepts as it is stays.

    Args:
        model: without functions.
        opset: from ``OLDEST_OPSET``, below 18.

    Raises:
        TraceError: the opset lacks an operator; the message names it and, if known, the module.
    """
    graph = model.graph
    for node in list(graph):
        rule = RULES.get(node.op_type)
        if rule is not None and opset < rule[0]:
            rule[1](graph, node)
    for node in graph:
        _check_node(node, opset)
        node.metadata_props.clear()  # which files of this age do not have
        node.version = None
    model.opset_imports[""] = opset
    model.ir_version = onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", opset)])


def _check_node(node: ir.Node, opset: int) -> None:
    """Cases 2 and 3."""
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
    except onnx.defs.SchemaError:
        raise _lacking(node, opset) from None
    newer = onnx.defs.get_schema(node.op_type, DEFAULT_OPSET, node.domain)
    for name, attribute in list(node.attributes.items()):
        if name not in schema.attributes:
            default = newer.attributes[name].default_value
            known = onnx.helper.get_attribute_value(default) if default.name else None
            known = known.decode() if isinstance(known, bytes) else known
            if attribute.value != known:
                raise _lacking(node, opset, f" with {name}={attribute.value!r}")
            del node.attributes[name]
    if len(node.inputs) > schema.max_input:
        raise _lacking(node, opset, f" with {len(node.inputs)} inputs")


def _lacking(node: ir.Node, opset: int, how: str = "") -> TraceError:
    made_from = node.meta.get("node")
    origin = origin_of(made_from) if isinstance(made_from, fx.Node) else None
    whose = f", of {origin}," if origin else ""
    return TraceError(
        f"export: opset {opset} has no {node.op_type}{how}{whose} in a form that is known; export "
        f"with a newer opset, up to {newest_opset()} (the default is {DEFAULT_OPSET})"
    )


class _Steps:
    """Makes the nodes that replace one."""

    def __init__(self, node: ir.Node) -> None:
        self.nodes: list[ir.Node] = []
        self.node = node

    def __call__(self, operator: str, *inputs: Any, **attributes: Any) -> ir.Value:
        node = ir.node(operator, inputs, attributes)
        node.meta.update(self.node.meta)
        self.nodes.append(node)
        return node.outputs[0]

    def constant(self, values: Any, like: ir.Value | None = None) -> ir.Value:
        """A constant, int64 or of the type of a value."""
        kind: Any = np.dtype(np.int64)
        if like is not None:
            kind = like.dtype.numpy() if like.dtype is not None else np.dtype(np.float32)
        return self("Constant", value=ir.tensor(np.asarray(values, kind)))

    def replace(self, graph: ir.Graph, values: Sequence[ir.Value | None]) -> None:
        """Put the nodes in the place of the old one, whose outputs are these values now."""
        pairs = zip(self.node.outputs, values, strict=False)
        used = [(old, new) for old, new in pairs if new is not None]
        for old, new in used:
            new.shape, new.type = old.shape, old.type
        olds, news = [old for old, _ in used], [new for _, new in used]
        ir.convenience.replace_nodes_and_values(
            graph, self.node, [self.node], self.nodes, olds, news
        )


def _integers(value: ir.Value | None) -> list[int] | None:
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    return None if tensor is None else [int(v) for v in tensor.numpy().reshape(-1)]


def _reduce(graph: ir.Graph, node: ir.Node) -> None:
    """The axes are an attribute."""
    axes = _integers(node.inputs[1]) if len(node.inputs) > 1 else None
    if axes is None and len(node.inputs) > 1 and node.inputs[1] is not None:
        return  # computed axes: refused with its inputs
    node.resize_inputs(1)
    if axes is not None:
        node.attributes["axes"] = ir.AttrInt64s("axes", axes)


def _reshape(graph: ir.Graph, node: ir.Node) -> None:
    """A zero would mean the input's size; there is none but for an empty batch."""
    if 0 not in (_integers(node.inputs[1]) or ()):
        node.attributes.pop("allowzero", None)


def _shape(graph: ir.Graph, node: ir.Node) -> None:
    """A part of the shape is sliced off."""
    bounds = [node.attributes.pop(name, None) for name in ("start", "end")]
    first, last = (None if b is None else b.as_int() for b in bounds)
    if not first and last is None:
        return
    steps = _Steps(node)
    whole = steps("Shape", node.inputs[0])
    ends = steps.constant([np.iinfo(np.int64).max if last is None else last])
    steps.replace(graph, [steps("Slice", whole, steps.constant([first or 0]), ends)])


def _layer_norm(graph: ir.Graph, node: ir.Node) -> None:
    """d = x - mean(x), y = d / sqrt(mean(d^2) + eps) * scale + bias, over axes from ``axis``."""
    x, scale, *bias = node.inputs
    assert x is not None
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else -1
    if axis >= 0:
        if x.shape is None:
            return
        axis -= len(x.shape)
    epsilon = node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else 1e-5
    axes, steps = list(range(axis, 0)), _Steps(node)
    mean = steps("ReduceMean", x, axes=axes)
    centred = steps("Sub", x, mean)
    variance = steps("ReduceMean", steps("Mul", centred, centred), axes=axes)
    deviation = steps("Sqrt", steps("Add", variance, steps.constant(epsilon, x)))
    inverse = steps("Reciprocal", deviation)
    y = steps("Mul", steps("Div", centred, deviation), scale)
    if bias and bias[0] is not None:
        y = steps("Add", y, bias[0])
    steps.replace(graph, [y, mean, inverse])


def _hard_swish(graph: ir.Graph, node: ir.Node) -> None:
    steps, x = _Steps(node), node.inputs[0]
    gate = steps("HardSigmoid", x, alpha=1 / 6, beta=0.5)
    steps.replace(graph, [steps("Mul", x, gate)])


def _mish(graph: ir.Graph, node: ir.Node) -> None:
    steps, x = _Steps(node), node.inputs[0]
    steps.replace(graph, [steps("Mul", x, steps("Tanh", steps("Softplus", x)))])


def _split(graph: ir.Graph, node: ir.Node) -> None:
    """The sizes of the parts are an input; all but the last are equal."""
    count, x = node.attributes.get("num_outputs"), node.inputs[0]
    if count is None or x is None or x.shape is None:
        return
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
    size, parts = x.shape[axis], count.as_int()
    if not isinstance(size, int):
        return
    each = math.ceil(size / parts)
    sizes = [*[each] * (parts - 1), size - each * (parts - 1)]
    constant = ir.node("Constant", [], {"value": ir.tensor(np.asarray(sizes, np.int64))})
    graph.insert_before(node, constant)
    del node.attributes["num_outputs"]
    node.resize_inputs(2)
    node.replace_input_with(1, constant.outputs[0])


def _scatter(graph: ir.Graph, node: ir.Node) -> None:
    """data + sum_j onehot(index_j) update_j over the last axis, as long as that is small."""
    data, index, update = node.inputs
    reduction = node.attributes.get("reduction")
    if reduction is None or reduction.as_string() != "add":
        return
    if data is None or index is None or data.shape is None or index.shape is None:
        return
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
    sizes = [size for size in (*data.shape[1:], index.shape[-1]) if isinstance(size, int)]
    if axis not in (-1, len(data.shape) - 1) or len(sizes) != len(data.shape):
        return
    if math.prod(sizes) > MOST_ONE_HOT or data.shape[1:-1] != index.shape[1:-1]:
        return
    steps = _Steps(node)
    depth, values = steps.constant([data.shape[-1]]), steps.constant([0, 1], data)
    places = steps("OneHot", index, depth, values, axis=-1)  # [..., j, n]
    each = steps("Mul", places, steps("Unsqueeze", update, steps.constant([-1])))
    total = steps("ReduceSum", each, steps.constant([-2]), keepdims=0)
    steps.replace(graph, [steps("Add", data, total)])


# By operator: the opset that the exporter's form needs, and how to write it for older ones.
RULES: Mapping[str, tuple[int, Callable[[ir.Graph, ir.Node], None]]] = {
    **{name: (18, _reduce) for name in REDUCTIONS},
    "Reshape": (14, _reshape),
    "Shape": (15, _shape),
    "LayerNormalization": (17, _layer_norm),
    "HardSwish": (14, _hard_swish),
    "Mish": (18, _mish),
    "Split": (18, _split),
    "ScatterElements": (16, _scatter),
}
