"""Replace the backwards of ReLU and ReLU6 by products with a sign, without comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from combicam.export.passes.affine_conversion import affine
from combicam.export.passes.blocked_layout import BlockedLayout, broadcasts, shape_of
from combicam.export.passes.clamp_reading import bounds
from combicam.export.passes.gate_spreading import as_blocks, spread_over

aten = torch.ops.aten
STEEP = 2.0**100  # activations below 1e-29 count as zero, in part; a power of two scales exactly
_WIDEST = 1e3  # of the bounds of a clamp, so that nothing overflows


class SignGating(PassBase):
    """where(y <= 0, 0, g)  ->  g * tanh(STEEP y), for y = relu(x); and for y = clamp(x, a, b)
    where((y <= a) | (y >= b), 0, g)  ->  g * tanh((y - a) (STEEP b - STEEP y)).

    What tanh gets is never negative, so it is 0 or 1. ONNX Runtime computes the scaled tanh in one
    pass over blocks, and the product in another; comparison and selection need three more reorders.
    Cases:

    1. y and g are blocked: rewritten;
    2. g is not: blocked first, because the following values (the gradient of a residual stream)
       then stay blocked;
    3. g is one number per channel: spread over the grid;
    4. y is not blocked: not changed.
    """

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        modified, blocked = False, BlockedLayout()
        for node in list(graph_module.graph.nodes):
            if node.target is not aten.where.self:
                continue
            arguments: tuple[Any, ...] = node.args
            below, zero, g = arguments
            bounded = (below.args[0], 0.0, None) if _compares(below) else bounds(below)
            if bounded is None or (bounded[2] or 0) - bounded[1] > _WIDEST:
                continue
            y, *limits = bounded
            if not blocked(y) or not _is_zero(graph_module, zero) or shape_of(g) is None:
                continue  # case 4
            if shape_of(g) != shape_of(y) and not broadcasts(y, g):
                continue
            _gate(graph_module, node, y, limits, g, blocked)
            modified = True
        graph_module.graph.eliminate_dead_code()
        return PassResult(graph_module, modified)


def _gate(
    module: fx.GraphModule,
    node: fx.Node,
    y: fx.Node,
    limits: Sequence[float | None],
    g: fx.Node,
    blocked: BlockedLayout,
) -> None:
    with module.graph.inserting_before(node):
        if broadcasts(y, g):  # case 3
            g = spread_over(module, g, y, blocked)
        elif not blocked(g):  # case 2
            g = as_blocks(module, g)
        low, high = limits
        if high is None:
            steep = affine(module, y, STEEP, 0.0)
        else:
            above = affine(module, y, 1.0, -low) if low else y
            below = affine(module, y, -STEEP, high * STEEP)
            steep = module.graph.call_function(aten.mul.Tensor, (above, below))
            steep.meta = dict(y.meta)
        sign = module.graph.call_function(aten.tanh.default, (steep,))
        gated = module.graph.call_function(aten.mul.Tensor, (g, sign))
    sign.meta, gated.meta = dict(y.meta), dict(node.meta)
    node.replace_all_uses_with(gated)
    module.graph.erase_node(node)


def _compares(node: object) -> bool:
    if not isinstance(node, fx.Node) or node.target is not aten.le.Scalar or node.args[1] != 0:
        return False
    y = node.args[0]
    return isinstance(y, fx.Node) and y.target is aten.relu.default


def _is_zero(module: fx.GraphModule, node: object) -> bool:
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return False
    value = getattr(module, str(node.target))
    return isinstance(value, Tensor) and value.numel() == 1 and float(value) == 0.0
