"""Pad channels to full blocks, so that ONNX Runtime runs a convolution on blocks."""

from __future__ import annotations

import torch
from torch import Tensor, fx
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from combicam.export.passes.blocked_layout import BLOCK, is_grid, shape_of
from combicam.export.passes.constants import add_constant

aten = torch.ops.aten


class ChannelPadding(PassBase):
    """W*x  ->  [W 0]*[x; 0] if the channels of x do not fill whole blocks.

    Cases:
        1. an ordinary convolution with more output than input channels (the expansion of an
           inverted residual block, or the gradient of its projection): the zeros cost a copy of
           the small input, and the large output stays blocked;
        2. fewer channels than a block: not changed, ONNX Runtime reads them unblocked;
        3. grouped or transposed, or output channels that do not fill blocks either: not changed.
    """

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        modified = False
        padded: dict[fx.Node, fx.Node] = {}
        for node in list(graph_module.graph.nodes):
            if node.target is aten.convolution.default and _wants_zeros(graph_module, node):
                _pad(graph_module, node, padded)
                modified = True
        return PassResult(graph_module, modified)


def _wants_zeros(module: fx.GraphModule, conv: fx.Node) -> bool:
    x, weight = conv.args[:2]
    shape = shape_of(weight)
    if not isinstance(weight, fx.Node) or weight.op != "get_attr" or shape is None:
        return False
    if len(shape) != 4 or conv.args[6] or conv.args[8] != 1 or not is_grid(x):
        return False  # case 3
    if getattr(module, str(weight.target)).dtype != torch.float32:
        return False
    made, read = int(shape[0]), int(shape[1])
    return read > BLOCK and read % BLOCK != 0 and made % BLOCK == 0 and made > read


def _pad(module: fx.GraphModule, conv: fx.Node, padded: dict[fx.Node, fx.Node]) -> None:
    x, weight = conv.args[:2]
    assert isinstance(x, fx.Node) and isinstance(weight, fx.Node)
    value: Tensor = getattr(module, str(weight.target))
    zeros = -value.shape[1] % BLOCK
    wider = torch.nn.functional.pad(value, (0, 0, 0, 0, 0, zeros))
    with module.graph.inserting_before(conv):
        constant = add_constant(module, "padded", wider)
        if x not in padded:
            edges = [0, 0, 0, 0, 0, zeros]
            padded[x] = module.graph.call_function(aten.constant_pad_nd.default, (x, edges, 0.0))
            held = x.meta["val"]  # running the operator would make the batch constant
            shape = [held.shape[0], held.shape[1] + zeros, *held.shape[2:]]
            padded[x].meta = {"val": held.new_empty(shape)}
    conv.args = (padded[x], constant, *conv.args[2:])
