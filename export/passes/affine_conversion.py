"""Replace arithmetic with numbers by per-channel affines, which ONNX Runtime runs on blocks."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from combicam.export.passes.blocked_layout import BlockedLayout, is_grid, shape_of
from combicam.export.passes.constants import add_constant

aten = torch.ops.aten


class AffineConversion(PassBase):
    """a x + b -> affine(x), written as a batch normalisation; differences become sums.

    ONNX Runtime runs an affine of blocked x as a depthwise convolution, and fuses a following
    addition into the same pass over memory. Cases, for blocked x and y:

    1. x - y + b  ->  x + affine(y, -1, b): the inner part of d SiLU;
    2. x - y      ->  x + affine(y, -1, 0);
    3. b - y      ->  affine(y, -1, b);
    4. y a and y + b  ->  affine(y, a, 0) and affine(y, 1, b).
    """

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        modified, blocked = False, BlockedLayout()
        for node in list(graph_module.graph.nodes):
            if node.op == "call_function" and not node.kwargs and is_grid(node):
                modified |= _rewrite(graph_module, node, blocked)
        graph_module.graph.eliminate_dead_code()
        return PassResult(graph_module, modified)


def _rewrite(module: fx.GraphModule, node: fx.Node, blocked: BlockedLayout) -> bool:
    x: fx.Node | None = None
    arguments: tuple[Any, ...] = (*node.args, None)
    first, second = arguments[:2]
    if node.target is aten.sub.Tensor and _alike(first, second, blocked):
        if _absorbing(node) is not None:
            return False  # the addition that follows is case 1
        x, y, scale, shift = first, second, -1.0, 0.0  # case 2
    elif node.target is aten.rsub.Scalar and blocked(first) and len(node.args) == 2:
        y, scale, shift = first, -1.0, second  # case 3
    elif node.target is aten.add.Tensor and isinstance(second, (int, float)):
        inner: Any = first.args if _absorbing(first) is node else (None, None)
        if _alike(inner[0], inner[1], blocked):
            (x, y), scale, shift = inner, -1.0, second  # case 1
        elif blocked(first):
            y, scale, shift = first, 1.0, second  # case 4
        else:
            return False
    elif node.target is aten.mul.Tensor and isinstance(second, (int, float)) and blocked(first):
        y, scale, shift = first, second, 0.0  # case 4
    else:
        return False
    with module.graph.inserting_before(node):
        result = affine(module, y, float(scale), float(shift))
        if x is not None:
            result = module.graph.call_function(aten.add.Tensor, (x, result))
            result.meta = dict(node.meta)
    node.replace_all_uses_with(result)
    module.graph.erase_node(node)
    return True


def _alike(x: object, y: object, blocked: BlockedLayout) -> bool:
    return shape_of(x) == shape_of(y) and blocked(x) and blocked(y)


def _absorbing(node: object) -> fx.Node | None:
    """The addition of a number to a difference that has no other user."""
    if not isinstance(node, fx.Node) or node.target is not aten.sub.Tensor or node.kwargs:
        return None
    user = next(iter(node.users), None)
    if user is None or len(node.users) != 1 or user.target is not aten.add.Tensor or user.kwargs:
        return None
    return user if user.args[0] is node and isinstance(user.args[1], (int, float)) else None


def affine(module: fx.GraphModule, x: fx.Node, scale: float, shift: float) -> fx.Node:
    """scale x + shift as one node, before the graph's insertion point."""
    shape = shape_of(x)
    assert shape is not None
    device = x.meta["val"].device
    constants = [
        add_constant(module, "affine_factor", torch.full((int(shape[1]),), value, device=device))
        for value in (scale, shift, 0.0, 1.0)
    ]
    node = module.graph.call_function(torch.ops.combicam.affine.default, (x, *constants))
    node.meta = dict(x.meta)
    return node
