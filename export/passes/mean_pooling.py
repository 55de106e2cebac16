"""Replace averages over the grid by global pooling, which ONNX Runtime computes on blocks."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from combicam.export.passes.blocked_layout import BlockedLayout, is_grid, shape_of

aten = torch.ops.aten
REDUCTIONS = (aten.mean.dim, aten.sum.dim_IntList)


class MeanPooling(PassBase):
    """mean(x) over h, w -> global_mean(x) [B,C,1,1], for blocked x. Cases:

    1. the mean, with or without its axes kept;
    2. the sum, as h w times the mean;
    3. the mean of unsqueeze(x, 1), as in the CAM head, as unsqueeze(mean(x), 1).
    """

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        modified, blocked = False, BlockedLayout()
        for node in list(graph_module.graph.nodes):
            if node.op == "call_function" and node.target in REDUCTIONS:
                modified |= _pool(graph_module.graph, node, blocked)
        graph_module.graph.eliminate_dead_code()
        return PassResult(graph_module, modified)


def _pool(graph: fx.Graph, node: fx.Node, blocked: BlockedLayout) -> bool:
    arguments: tuple[Any, ...] = node.args
    x, axes, *keep = arguments
    lifted = isinstance(x, fx.Node) and x.target is aten.unsqueeze.default and x.args[1] == 1
    source = x.args[0] if lifted else x
    shape = shape_of(source)
    rank = 5 if lifted else 4
    if not isinstance(axes, (list, tuple)) or {int(a) % rank for a in axes} != {rank - 2, rank - 1}:
        return False
    if shape is None or not blocked(source) or not is_grid(source) or node.kwargs:
        return False
    kept = keep == [True]
    if lifted and kept:
        return False
    with graph.inserting_before(node):
        small = _call(graph, torch.ops.combicam.global_mean.default, source)
        if node.target is aten.sum.dim_IntList:  # case 2
            small = _call(graph, aten.mul.Tensor, small, float(shape[2] * shape[3]))
        if not kept:
            small = _call(graph, aten.squeeze.dims, small, [2, 3])
        if lifted:  # case 3
            small = _call(graph, aten.unsqueeze.default, small, 1)
    node.replace_all_uses_with(small)
    return True


def _call(graph: fx.Graph, target: torch._ops.OpOverload, x: fx.Node, *rest: Any) -> fx.Node:
    node = graph.call_function(target, (x, *rest))
    node.meta = {"val": target(x.meta["val"], *rest)}
    return node
