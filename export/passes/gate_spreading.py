"""Spread gates over the grid so that ONNX Runtime multiplies blocked tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from combicam.export.passes.blocked_layout import BlockedLayout, broadcasts, shape_of
from combicam.export.passes.constants import add_constant

aten = torch.ops.aten
spread = torch.ops.combicam.spread.default


class GateSpreading(PassBase):
    """x * gate  ->  x * spread(gate), gate [B,C,1,1]; and the same for sums.

    Squeeze-and-excitation multiplies activations by gates computed from their pooled values, and
    its backward adds a pooled gradient to theirs. ONNX Runtime broadcasts only in NCHW, which
    costs two reorders of x, while writing the spread gate costs half a reorder. Cases:

    1. the gate is blocked: spread;
    2. it is not: blocked first, by a depthwise convolution with ones, which is cheap;
    3. x is not blocked: not changed.
    """

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        modified, blocked = False, BlockedLayout()
        made: dict[object, fx.Node] = {}
        for node in list(graph_module.graph.nodes):  # in order: a gated tensor stays blocked
            if node.target not in (aten.mul.Tensor, aten.add.Tensor) or node.kwargs:
                continue
            arguments: Any = node.args
            for x, gate in (arguments, arguments[::-1]):
                if broadcasts(x, gate) and blocked(x):
                    key = gate, *(shape_of(x) or ())[2:]
                    if key not in made:
                        made[key] = spread_over(graph_module, gate, x, blocked)
                    node.replace_input_with(gate, made[key])
                    modified = True
        return PassResult(graph_module, modified)


def spread_over(
    module: fx.GraphModule, gate: fx.Node, x: fx.Node, blocked: BlockedLayout
) -> fx.Node:
    """The gate in the shape of x, blocked."""
    shape = shape_of(x)
    assert shape is not None
    with module.graph.inserting_after(gate):
        small = gate if blocked(gate) else as_blocks(module, gate)  # case 2
    with module.graph.inserting_after(small):
        large = module.graph.call_function(spread, (small, int(shape[2]), int(shape[3])))
    large.meta = dict(x.meta)
    return large


def as_blocks(module: fx.GraphModule, x: fx.Node) -> fx.Node:
    """x through a depthwise convolution with ones, at the graph's insertion point."""
    shape = shape_of(x)
    assert shape is not None
    channels = int(shape[1])
    value = torch.ones(channels, 1, 1, 1, device=x.meta["val"].device)
    ones = add_constant(module, "ones", value)
    arguments = (x, ones, None, [1, 1], [0, 0], [1, 1], False, [0, 0], channels)
    with module.graph.inserting_after(ones):
        result = module.graph.call_function(aten.convolution.default, arguments)
    result.meta = dict(x.meta)
    return result
