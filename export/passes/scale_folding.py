"""Fold a constant factor into the weights of an adjacent convolution."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from combicam.export.passes.constants import add_constant

aten = torch.ops.aten
FACTORS = (aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar)


class ScaleFolding(PassBase):
    """W*(s x)  ->  (W s)*x, with one constant s per channel.

    Batch normalisation leaves this in the backward: the gradient is scaled, then convolved. Cases:
        1. an ordinary convolution, whose weight is [out, in/groups, ...];
        2. a transposed one, whose weight is [in, out/groups, ...];
        3. s (W*x)  ->  (s W)*x for a number s after a convolution without bias, which pooling
           leaves.
    Values between factor and convolution must have no other users, and x must have its channels.
    """

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        modified = False
        for conv in list(graph_module.graph.nodes):
            if conv.target is not aten.convolution.default:
                continue
            while _fold(graph_module, conv) or _fold_behind(graph_module, conv):
                modified = True
        graph_module.graph.eliminate_dead_code()
        return PassResult(graph_module, modified)


def _fold(module: fx.GraphModule, conv: fx.Node) -> bool:
    product, weight_node = conv.args[:2]
    if not isinstance(product, fx.Node) or not isinstance(weight_node, fx.Node):
        return False
    if product.target is not aten.mul.Tensor or len(product.users) != 1:
        return False
    if weight_node.op != "get_attr":
        return False
    weight: Tensor = getattr(module, str(weight_node.target))
    if weight.ndim != 4:
        return False
    transposed, groups = bool(conv.args[6]), int(conv.args[8])  # type: ignore[arg-type]
    channels = weight.shape[0] if transposed else weight.shape[1] * groups
    for x, s in (product.args, product.args[::-1]):
        scale = _per_channel(module, s, channels)
        if scale is None or not isinstance(x, fx.Node) or not _has_channels(x, channels):
            continue
        with module.graph.inserting_before(conv):
            scaled = _scaled(weight, scale, transposed, groups)
            constant = add_constant(module, "scaled", scaled)
        conv.args = (x, constant, *conv.args[2:])
        return True
    return False


def _fold_behind(module: fx.GraphModule, conv: fx.Node) -> bool:
    """Case 3."""
    weight, bias = conv.args[1:3]
    product: Any = next(iter(conv.users), None)
    if product is None or len(conv.users) != 1 or product.target not in FACTORS:
        return False
    factor = product.args[1]
    if product.args[0] is not conv or not isinstance(factor, (int, float)):
        return False
    if bias is not None or not isinstance(weight, fx.Node) or weight.op != "get_attr":
        return False
    value: Tensor = getattr(module, str(weight.target))
    with module.graph.inserting_before(conv):
        constant = add_constant(module, "scaled", product.target(value, factor))
    conv.args = (conv.args[0], constant, *conv.args[2:])
    product.replace_all_uses_with(conv)
    module.graph.erase_node(product)
    return True


def _has_channels(x: fx.Node, channels: int) -> bool:
    value = x.meta.get("val")
    return isinstance(value, Tensor) and value.ndim == 4 and value.shape[1] == channels


def _per_channel(module: fx.GraphModule, node: object, channels: int) -> Tensor | None:
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    value: Tensor = getattr(module, str(node.target))
    shape = (1,) * (4 - value.ndim) + tuple(value.shape)
    return value.flatten() if shape == (1, channels, 1, 1) else None


def _scaled(weight: Tensor, scale: Tensor, transposed: bool, groups: int) -> Tensor:
    if transposed:  # case 2
        return weight * scale.view(-1, 1, 1, 1)
    per_group = scale.view(groups, 1, -1, 1, 1)  # case 1
    return (weight.unflatten(0, (groups, -1)) * per_group).flatten(0, 1)
