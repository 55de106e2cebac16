"""Split layer norms whose statistics are read, for runtimes that return none."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import Tensor, fx
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from combicam.export.passes.inlining import inline

aten = torch.ops.aten


class LayerNormSplitting(PassBase):
    """layer_norm(x)  ->  d r w + b, d = x - mean(x), r = 1 / sqrt(mean(d^2) + eps).

    The backward reads mean and r. A norm whose output alone is read stays.
    """

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        found = [
            node
            for node in graph_module.graph.nodes
            if node.target is aten.native_layer_norm.default
            and any(u.target is operator.getitem and u.args[1] and u.users for u in node.users)
        ]
        for node in found:
            inline(graph_module, node, layer_norm)
        return PassResult(graph_module, bool(found))


def layer_norm(
    x: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The norm of x over its last axes, its means and 1 / deviations, as aten computes them."""
    axes = list(range(-len(shape), 0))
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    mean = wide.mean(axes, keepdim=True)
    centred = wide - mean
    inverse = ((centred * centred).mean(axes, keepdim=True) + eps).rsqrt()
    y = centred * inverse
    if weight is not None:
        y = y * weight.to(y.dtype)
    if bias is not None:
        y = y + bias.to(y.dtype)
    return y.to(x.dtype), mean, inverse
