"""Move expansions after their users, so that tensors stay small for longer."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.fx.passes.infra.pass_base import PassBase, PassResult

aten = torch.ops.aten
SCALED = (aten.div.Scalar, aten.div.Tensor, aten.mul.Scalar, aten.mul.Tensor)
BROADCASTING = (
    aten.add.Tensor,
    aten.sub.Tensor,
    aten.mul.Tensor,
    aten.div.Tensor,
    aten.where.self,
    # All but gelu_backward, which oneDNN computes for equal shapes alone.
    aten.threshold_backward.default,
    aten.silu_backward.default,
    aten.hardswish_backward.default,
    aten.hardsigmoid_backward.default,
    aten.hardtanh_backward.default,
    aten.leaky_relu_backward.default,
    aten.elu_backward.default,
    aten.sigmoid_backward.default,
    aten.tanh_backward.default,
)


class ExpandSinking(PassBase):
    """f(expand(x)) -> expand(f(x)): the gradient of a pooled sum is one number per channel.

    Only expansions that keep the rank. Cases:
        1. f scales by a number, or inserts an axis: applied to the small tensor;
        2. f is element-wise and another input has the full shape already: f broadcasts;
        3. f averages the expanded axes: x itself, or x without them.
    """

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        modified = False
        for node in list(graph_module.graph.nodes):  # in order: an expansion sinks through chains
            if node.op == "call_function":
                modified |= _sink(graph_module.graph, node)
        if modified:  # other values are dense than in the trace
            for node in graph_module.graph.find_nodes(op="call_function", target=aten.view.default):
                node.target = aten.reshape.default
        graph_module.graph.eliminate_dead_code()
        return PassResult(graph_module, modified)


def _sink(graph: fx.Graph, node: fx.Node) -> bool:
    arguments: tuple[Any, ...] = node.args
    spread = [a for a in arguments if _is_expansion(a)]
    if node.target is aten.mean.dim and spread and _averages_expanded(node):  # case 3
        source = spread[0].args[0]
        if list(arguments[2:]) != [True]:
            with graph.inserting_before(node):
                source = graph.call_function(aten.squeeze.dims, (source, arguments[1]))
            source.meta = dict(node.meta)
        node.replace_all_uses_with(source)
        return True
    if node.target is aten.unsqueeze.default and spread and arguments[1] >= 0:  # case 1
        source, sizes = spread[0].args[:2]
        lifted = [*sizes[: arguments[1]], 1, *sizes[arguments[1] :]]
        with graph.inserting_before(node):
            small = graph.call_function(node.target, (source, arguments[1]))
            small.meta = {"val": aten.unsqueeze.default(source.meta["val"], arguments[1])}
            large = graph.call_function(aten.expand.default, (small, lifted))
        large.meta = dict(node.meta)
        node.replace_all_uses_with(large)
        return True
    if (
        node.target in SCALED
        and _is_expansion(arguments[0])
        and isinstance(arguments[1], (int, float))
    ):  # case 1
        source, sizes = arguments[0].args[:2]
        with graph.inserting_before(node):
            small = graph.call_function(node.target, (source, arguments[1]))
            small.meta = dict(source.meta)
            large = graph.call_function(aten.expand.default, (small, sizes))
            large.meta = dict(node.meta)
        node.replace_all_uses_with(large)
        return True
    if node.target not in BROADCASTING:
        return False
    modified = False
    for expansion in spread:  # case 2
        others = [a for a in node.all_input_nodes if a is not expansion]
        if any(not _is_expansion(a) and _shape(a) == _shape(node) for a in others):
            node.replace_input_with(expansion, expansion.args[0])
            modified = True
    return modified


def _is_expansion(node: object) -> bool:
    if not isinstance(node, fx.Node) or node.target is not aten.expand.default:
        return False
    source, result = _shape(node.args[0]), _shape(node)
    return source is not None and result is not None and len(source) == len(result)


def _averages_expanded(node: fx.Node) -> bool:
    arguments: tuple[Any, ...] = node.args
    expansion, axes = arguments[:2]
    assert isinstance(expansion, fx.Node)
    source, result = _shape(expansion.args[0]), _shape(expansion)
    if source is None or result is None or not isinstance(axes, (list, tuple)) or node.kwargs:
        return False
    averaged = {int(axis) % len(result) for axis in axes}
    grown = {i for i, (a, b) in enumerate(zip(source, result, strict=True)) if a != b}
    return averaged == grown


def _shape(node: object) -> tuple[object, ...] | None:
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return tuple(value.shape) if isinstance(value, torch.Tensor) else None
