"""Store the weights of an ONNX graph once, and in 16 bit: runtimes compute the rest as they load.

Forward and backward read weights in two forms.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from combicam.lazy import lazy_module

if TYPE_CHECKING:
    import onnx_ir as ir
else:  # slow to import: only what looks into a file does
    ir = lazy_module("onnx_ir")

# Smaller weights are not worth the nodes.
_LEAST_BYTES = 16 << 10
# Scales are folded into both forms one after the other, so they differ by roundings: relative to
# the largest weight.
_ROUNDINGS = 4 * float(np.finfo(np.float32).eps)
WEIGHTS = ("float32", "float16")
# Values that are compared before whole weights are.
_PROBES = 64

_FLOATS = ("FLOAT", "FLOAT16")
Array = NDArray[Any]
Steps = tuple[str, ...]  # of "swap" (the first two axes) and "turn" (the last two)


def share_weights(model: ir.Model, computes: bool = True) -> int:
    """Compute the backward's weights from the forward's, by nodes that runtimes fold as they load.

    The gradient of a convolution is one with its weight [O,I,h,w] turned around in h and w, and
    with O and I exchanged; that of a linear layer has the transposed matrix. Cases:
        1. a matrix that is another one transposed, of products of matrices: ``Gemm`` reads that
           one transposed;
        2. another weight that is one transposed, turned around, or both: ``Transpose`` and
           ``Gather`` of that one;
        3. the same weight twice: the first one, see :func:`separate_transposed`.

    Args:
        model: changed in place.
        computes: whether the runtime may compute weights as it loads; otherwise not case 2.

    Returns:
        Bytes that the file is smaller by.
    """
    graph = model.graph
    groups: dict[tuple[Any, ...], list[ir.Value]] = defaultdict(list)
    for value in graph.initializers.values():
        stored = value.const_value
        if stored is None or stored.nbytes < _LEAST_BYTES or stored.dtype.name not in _FLOATS:
            continue
        groups[stored.dtype, tuple(sorted(stored.shape.numpy()))].append(value)
    saved = 0
    for values in groups.values():
        kept: list[tuple[ir.Value, Array]] = []
        for value in sorted(values, key=_first_use(graph)):
            assert value.const_value is not None
            weight = value.const_value.numpy()
            multiplies = _multiplies(value)
            found = next(
                (
                    (source, steps)
                    for source, steps in _same(weight, kept)
                    if computes or not steps or (multiplies and steps == ("swap",))
                ),
                None,
            )
            if found is None:
                kept.append((value, weight))
                continue
            source, steps = found
            saved += value.const_value.nbytes
            if multiplies and steps == ("swap",):
                _read_transposed(graph, value, source)
            else:
                _replace(graph, value, source, steps)
    if computes:
        separate_transposed(model)
    return saved


def separate_transposed(model: ir.Model) -> bool:
    """Let no transposed convolution read the weight of a convolution, but one rounding beside it.

    OpenVINO 2026.4 computes other values where a ``Conv`` and a ``ConvTranspose`` read one weight,
    also through nodes that change nothing. The gradient of a convolution with strides is such a
    pair.

    Returns:
        Whether there was one.
    """
    graph, modified = model.graph, False
    for value in list(graph.initializers.values()):
        readers = [use for use in value.uses() if use.idx == 1]
        transposed = [use for use in readers if use.node.op_type == "ConvTranspose"]
        stored = value.const_value
        if not transposed or all(use.node.op_type != "Conv" for use in readers) or stored is None:
            continue
        name, dtype = f"next_to_one_{stored.dtype}", stored.dtype.numpy()
        if name not in graph.initializers:
            factor = np.nextafter(dtype.type(1), dtype.type(2))
            tensor = ir.tensor(np.array(factor, dtype), name=name)
            graph.register_initializer(ir.Value(name=name, const_value=tensor))
        node = ir.node("Mul", [value, graph.initializers[name]])
        result = node.outputs[0]
        result.name, result.dtype = f"{value.name}_transposed", stored.dtype
        graph.insert_before(graph[0], node)
        for use in transposed:
            use.node.replace_input_with(1, result)
        modified = True
    return modified


def halve_weights(model: ir.Model) -> None:
    """Store weights in float16, which a ``Cast`` makes float32 again, once, as runtimes load.

    What exceeds float16's largest number stays float32.
    """
    graph = model.graph
    for value in list(graph.initializers.values()):
        stored = value.const_value
        if stored is None or stored.dtype != ir.DataType.FLOAT or stored.nbytes < _LEAST_BYTES:
            continue
        weight = stored.numpy()
        if not np.abs(weight).max() <= np.finfo(np.float16).max:
            continue
        name = f"{value.name}_float16"
        tensor = ir.tensor(weight.astype(np.float16), name=name)
        half = ir.Value(name=name, const_value=tensor, type=ir.TensorType(ir.DataType.FLOAT16))
        half.shape = value.shape
        node = ir.node("Cast", [half], {"to": ir.DataType.FLOAT})
        graph.insert_before(graph[0], node)
        _read_instead(graph, value, node.outputs[0])
        graph.register_initializer(half)


def _first_use(graph: ir.Graph) -> Any:
    """A key that orders values by the first node that reads them."""
    places = {node: i for i, node in enumerate(graph)}

    def place(value: ir.Value) -> int:
        return min((places.get(use.node, 0) for use in value.uses()), default=0)

    return place


def _forms(weight: Array) -> Iterator[tuple[Steps, Array]]:
    """The weight in all forms that steps make of it."""
    yield (), weight
    if weight.ndim in (2, 4):
        yield ("swap",), weight.swapaxes(0, 1)
    if weight.ndim == 4 and weight.shape[2:] != (1, 1):
        turned = weight[..., ::-1, ::-1]
        yield ("turn",), turned
        yield ("swap", "turn"), turned.swapaxes(0, 1)


def _same(
    weight: Array, kept: Sequence[tuple[ir.Value, Array]]
) -> Iterator[tuple[ir.Value, Steps]]:
    """Weights that this one is a form of, and the form."""
    probes = np.linspace(0, weight.size - 1, _PROBES).astype(np.int64)
    some, limit = weight.reshape(-1)[probes], _ROUNDINGS * float(np.abs(weight).max())
    for value, other in kept:
        for steps, form in _forms(other):
            if form.shape != weight.shape:
                continue
            few = form[np.unravel_index(probes, form.shape)]
            if np.abs(few - some).max() <= limit and np.abs(form - weight).max() <= limit:
                yield value, steps


def _multiplies(value: ir.Value) -> bool:
    """Whether a value is only the right factor of products of two matrices."""

    def fits(use: Any) -> bool:
        left = use.node.inputs[0]
        two = left is not None and left.shape is not None and len(left.shape) == 2
        return use.idx == 1 and (
            use.node.op_type == "Gemm" or (use.node.op_type == "MatMul" and two)
        )

    return all(fits(use) for use in value.uses())


def _read_transposed(graph: ir.Graph, value: ir.Value, source: ir.Value) -> None:
    """Let the products with a matrix be ``Gemm`` with another one, transposed."""
    for use in list(value.uses()):
        node = use.node
        if node.op_type == "Gemm":
            flipped = 1 - (node.attributes["transB"].as_int() if "transB" in node.attributes else 0)
            node.attributes["transB"] = ir.AttrInt64("transB", flipped)
            continue
        product = ir.node("Gemm", list(node.inputs), {"transB": 1})
        product.meta.update(node.meta)
        ir.convenience.replace_nodes_and_values(
            graph, node, [node], [product], node.outputs, product.outputs
        )
    _read_instead(graph, value, source)


def _replace(graph: ir.Graph, value: ir.Value, source: ir.Value, steps: Steps) -> None:
    """Let the readers of a weight read a form of another one."""
    assert value.const_value is not None and value.name is not None
    users, result = [use.node for use in value.uses()], source
    first = min(users, key=list(graph).index)
    for step, attributes, numbers in _nodes(steps, tuple(value.const_value.shape.numpy())):
        indices = [] if numbers is None else [_numbers(graph, numbers)]
        node = ir.node(step, [result, *indices], attributes)
        result = node.outputs[0]
        result.name = f"{value.name}_{node.op_type}{attributes.get('axis', '')}"
        result.dtype = value.const_value.dtype
        graph.insert_before(first, node)
    _read_instead(graph, value, result)


def _nodes(
    steps: Steps, shape: tuple[int, ...]
) -> Iterator[tuple[str, dict[str, Any], Sequence[int] | None]]:
    """Operators, attributes and indices of the steps to a weight of this shape."""
    for step in steps:
        if step == "swap":
            yield "Transpose", {"perm": [1, 0, *range(2, len(shape))]}, None
        else:
            for axis in (2, 3):
                yield "Gather", {"axis": axis}, range(shape[axis])[::-1]


def _read_instead(graph: ir.Graph, value: ir.Value, other: ir.Value) -> None:
    """Let the readers of a weight read another value, and drop the weight."""
    assert value.name is not None and value.const_value is not None
    if not other.name:
        other.name, other.dtype = f"{value.name}_float32", value.const_value.dtype
    for use in list(value.uses()):
        use.node.replace_input_with(use.idx, other)
    del graph.initializers[value.name]


def _numbers(graph: ir.Graph, numbers: Sequence[int]) -> ir.Value:
    """An initializer with these numbers, one for all of its readers."""
    name = f"indices_{numbers[0]}_{numbers[-1]}"
    if name not in graph.initializers:
        tensor = ir.tensor(np.array(list(numbers), np.int64), name=name)
        graph.register_initializer(ir.Value(name=name, const_value=tensor))
    return graph.initializers[name]
