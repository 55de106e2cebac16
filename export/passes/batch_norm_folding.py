"""Fold batch normalisation into the weights of the convolution before it."""

from __future__ import annotations

import operator

import torch
from torch import Tensor, fx
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from combicam.export.passes.constants import add_constant

aten = torch.ops.aten
NORMS = (
    aten.native_batch_norm.default,
    aten._native_batch_norm_legit_no_training.default,
    aten.cudnn_batch_norm.default,
)


class BatchNormFolding(PassBase):
    """g (W*x + b - m) / sqrt(v + e) + t  ->  (s W)*x + (s (b - m) + t), s = g / sqrt(v + e).

    In eval mode only. Cases:
        1. the convolution's output has no other user: folded;
        2. it has other users (it is a target layer): not changed;
        3. no convolution before it: one multiplication and one addition per channel.
    """

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        modified = graph_module.graph.eliminate_dead_code()
        for node in list(graph_module.graph.nodes):
            if node.op == "call_function" and node.target in NORMS and _in_eval(node):
                modified |= _fold(graph_module, node)
        graph_module.graph.eliminate_dead_code()
        return PassResult(graph_module, modified)


def _in_eval(node: fx.Node) -> bool:
    legit = node.target is NORMS[1]
    only_output = all(u.target is operator.getitem and u.args[1] == 0 for u in node.users)
    return only_output and (legit or node.args[5] is False)


def _constant(module: fx.GraphModule, node: object) -> Tensor | None:
    if isinstance(node, fx.Node) and node.op == "get_attr":
        value = getattr(module, str(node.target))
        return value if isinstance(value, Tensor) else None
    return None


def _fold(module: fx.GraphModule, node: fx.Node) -> bool:
    x, gamma, beta, mean, var = node.args[:5]
    eps = node.args[-1]
    m, v = _constant(module, mean), _constant(module, var)
    if m is None or v is None or not isinstance(x, fx.Node) or not isinstance(eps, float):
        return False
    g, t = _constant(module, gamma), _constant(module, beta)
    scale = torch.rsqrt(v.double() + eps) * (1.0 if g is None else g.double())
    shift = (0.0 if t is None else t.double()) - m.double() * scale
    outputs = list(node.users)
    is_conv = x.target is aten.convolution.default and x.args[6] is False
    weight = _constant(module, x.args[1]) if is_conv else None
    if weight is not None and len(x.users) == 1:  # case 1
        bias = _constant(module, x.args[2])
        bias_before = 0.0 if bias is None else bias.double()
        with module.graph.inserting_before(x):
            folded = weight.double() * _along(scale, 0, weight.ndim)
            new_weight = add_constant(module, "norm", folded.to(weight.dtype))
            moved = bias_before * scale + shift
            new_bias = add_constant(module, "norm", moved.to(weight.dtype))
        x.args = (x.args[0], new_weight, new_bias, *x.args[3:])
        replacement = x
    elif is_conv:  # case 2
        return False
    else:  # case 3
        dtype = m.dtype if g is None else g.dtype
        with module.graph.inserting_before(node):
            rank = x.meta["val"].ndim
            factor = add_constant(module, "norm", _along(scale, 1, rank).to(dtype))
            offset = add_constant(module, "norm", _along(shift, 1, rank).to(dtype))
            product = module.graph.call_function(aten.mul.Tensor, (x, factor))
            replacement = module.graph.call_function(aten.add.Tensor, (product, offset))
            product.meta = dict(x.meta)
            replacement.meta = dict(x.meta)
    for output in outputs:
        output.replace_all_uses_with(replacement)
        module.graph.erase_node(output)
    module.graph.erase_node(node)
    return True


def _along(values: Tensor, axis: int, rank: int) -> Tensor:
    """[C] as a tensor that broadcasts along one axis."""
    return values.view([-1 if i == axis else 1 for i in range(rank)])
