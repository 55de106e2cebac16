"""Write depthwise transposed convolutions as ordinary ones, which ONNX Runtime runs on blocks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from combicam.export.passes.blocked_layout import aten, ours, shape_of
from combicam.export.passes.constants import add_constant


class ZeroInsertion(PassBase):
    """W ^T x  ->  flip(W) * (x with zeros between its pixels), the gradient of a stride.

    ONNX Runtime's ``ConvTranspose`` runs on one core and multiplies a tiny matrix per channel; its
    depthwise ``Conv`` runs on blocks of channels and all cores. The zeros come of repeated pixels
    times a grid of zeros and ones, two passes over memory. Cases:

    1. one filter per channel, a stride of at least 2, constant weights in float32: replaced;
    2. others, whose matrices are large enough, and zeros would be multiplied: not changed;
    3. padding beyond the reach of the filter: not changed.
    """

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        modified = False
        for node in list(graph_module.graph.nodes):
            if node.target in (aten.convolution.default, ours.convolution.default):
                modified |= _replace(graph_module, node)
        graph_module.graph.eliminate_dead_code()
        return PassResult(graph_module, modified)


def _replace(module: fx.GraphModule, node: fx.Node) -> bool:
    arguments: tuple[Any, ...] = node.args
    x, weight, bias, stride, padding, dilation, transposed, _, groups = arguments
    like = node.meta["val"]
    if not transposed or like.ndim != 4 or max(stride) == 1 or max(dilation) != 1:
        return False
    if not isinstance(weight, fx.Node) or weight.op != "get_attr" or groups == 1:
        return False
    filters: Tensor = getattr(module, str(weight.target))
    if filters.dtype != torch.float32 or filters.shape[:2] != (groups, 1):
        return False  # case 2
    size, made = [int(n) for n in shape_of(x)[2:]], [int(n) for n in like.shape[2:]]  # type: ignore[index]
    # With zeros behind its last pixel, too, x is as large as if all were repeated.
    inserted = [n * s for n, s in zip(size, stride, strict=True)]
    reach = [n - 1 for n in filters.shape[2:]]
    before = [r - p for r, p in zip(reach, padding, strict=False)]
    after = [m - n - b + r for m, n, b, r in zip(made, inserted, before, reach, strict=True)]
    if min(*before, *after) < 0:
        return False  # case 3
    grid = torch.zeros(inserted, dtype=filters.dtype, device=filters.device)
    grid[:: stride[0], :: stride[1]] = 1
    held = x.meta["val"]
    graph = module.graph
    with graph.inserting_before(node):
        repeated = graph.call_function(ours.spread.default, (x, *stride))
        zeroed = graph.call_function(
            aten.mul.Tensor, (repeated, add_constant(module, "every_other", grid[None, None]))
        )
        for made_node in (repeated, zeroed):
            made_node.meta = {"val": held.new_empty([*held.shape[:2], *inserted])}
        flipped = add_constant(module, "flipped", filters.flip(2, 3))
        even = before == after
        conv = graph.call_function(
            aten.convolution.default if even else ours.convolution.default,
            (
                *(zeroed, flipped, bias, [1, 1], before if even else before + after),
                *([1, 1], False, [0, 0], groups),
            ),
        )
    conv.meta = dict(node.meta)
    node.replace_all_uses_with(conv)
    return True
