"""Replace the backward of max pooling by MaxUnpool."""

from __future__ import annotations

import operator
from typing import Any

from torch import fx
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from combicam.export.passes.blocked_layout import aten, ours, shape_of

VIEWS = (aten.view.default, aten.reshape.default)


class MaxUnpoolFusion(PassBase):
    """scatter_add(zeros, indices, g)  ->  max_unpool(g, indices), indices of a max pool.

    ONNX's indices refer to the whole tensor, torch's to a plane: the exporter pools twice to
    convert them, and ONNX Runtime scatters on one core. Cases:

    1. windows that tile the input (kernel = stride, no padding) do not share maxima: replaced;
    2. windows that overlap or exceed the input, whose gradients must be added: not changed.
    """

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        graph, modified = graph_module.graph, False
        made: dict[fx.Node, fx.Node] = {}
        for node in list(graph.nodes):
            pool = _scattered_pool(node)
            if pool is None or not _tiles(pool):  # case 2
                continue
            if pool not in made:
                made[pool] = _pool(graph, pool)
            x, kernel = _arguments(pool)[:2]
            with graph.inserting_before(node):  # case 1
                indices = graph.call_function(operator.getitem, (made[pool], 1))
                grad = _arguments(_arguments(_arguments(node)[0])[3])[0]
                unpooled = graph.call_function(
                    ours.max_unpool.default, (grad, indices, x, list(kernel))
                )
            unpooled.meta = dict(node.meta)
            node.replace_all_uses_with(unpooled)
            modified = True
        graph.eliminate_dead_code()
        return PassResult(graph_module, modified)


def _scattered_pool(node: fx.Node) -> fx.Node | None:
    """The max pool whose indices view(scatter_add(view(zeros), -1, view(i), view(g))) uses."""
    scatter = node.args[0] if node.target in VIEWS else None
    if not isinstance(scatter, fx.Node) or scatter.target is not aten.scatter_add.default:
        return None
    into, _, where, grads = _arguments(scatter)
    for part in (into, where, grads):
        if not isinstance(part, fx.Node) or part.target not in VIEWS:
            return None
    item, zeros = _arguments(where)[0], _arguments(into)[0]
    if not isinstance(item, fx.Node) or item.target is not operator.getitem or item.args[1] != 1:
        return None
    if not isinstance(zeros, fx.Node) or zeros.target is not aten.zeros_like.default:
        return None
    pool = item.args[0]
    if not isinstance(pool, fx.Node) or pool.target is not aten.max_pool2d_with_indices.default:
        return None
    return pool if shape_of(node) == shape_of(pool.args[0]) else None


def _arguments(node: fx.Node) -> tuple[Any, ...]:
    return node.args


def _tiles(pool: fx.Node) -> bool:
    x, kernel, *rest = _arguments(pool)
    stride = rest[0] if rest else kernel
    shape = shape_of(x)
    if shape is None or not isinstance(kernel, (list, tuple)) or len(kernel) != 2:
        return False
    whole = all(int(size) % int(k) == 0 for size, k in zip(shape[2:], kernel, strict=True))
    plain = all(set(value) <= {v} for value, v in zip(rest[1:3], (0, 1), strict=False))
    return whole and plain and list(stride or kernel) == list(kernel)


def _pool(graph: fx.Graph, pool: fx.Node) -> fx.Node:
    """The same pool, with indices into the whole tensor; its maxima are used as well."""
    x, kernel = _arguments(pool)[:2]
    with graph.inserting_before(pool):
        replacement = graph.call_function(ours.max_pool.default, (x, list(kernel)))
        maxima = graph.call_function(operator.getitem, (replacement, 0))
    for item in list(pool.users):
        if item.args[1] == 0:
            maxima.meta = dict(item.meta)
            item.replace_all_uses_with(maxima)
    return replacement
