"""Fuse what follows a convolution with it: bias, residual, activation."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from combicam.export.passes.blocked_layout import is_grid
from combicam.export.passes.constants import add_constant
from combicam.kernels import bias_act as bias_act  # defines torch.ops.combicam.bias_act_

aten, ours = torch.ops.aten, torch.ops.combicam
ACTS: dict[object, str] = {
    aten.relu.default: "relu",
    aten.silu.default: "silu",
    aten.hardswish.default: "hardswish",
}
SIXTEEN_BIT = (torch.bfloat16, torch.float16)


class EpilogueFusion(PassBase):
    """act(W*x + b + z)  ->  one operator, or a convolution without bias and one that adds it.

    For eager torch on CUDA in 16 bit, which runs a kernel for each of these steps. z is a residual
    of the same shape, or absent. Cases:
        1. relu(W*x + b [+ z]), with no other reader of the values between: cuDNN's operator, if it
           is fast (``_in_cudnn``);
        2. the same with another activation, without one, or not for cuDNN: ``bias_act_`` changes
           the output of W*x;
        3. W*x + b has an activation and other readers (its backward, the head):
           ``bias_act_pair_`` changes the output of W*x into W*x + b, and returns act beside it;
        4. z is itself V*y + c without other readers: c is added to b, a constant;
        5. transposed, no bias, float32, or a map of 1 x 1: not changed.
    """

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        modified = False
        for node in list(graph_module.graph.nodes):
            if _adds_bias(node):
                _fuse(graph_module, node)
                modified = True
        return PassResult(graph_module, modified)


def _adds_bias(node: fx.Node) -> bool:
    if node.target is not aten.convolution.default or node.args[2] is None or node.args[6]:
        return False
    return bool(node.users) and is_grid(node) and node.meta["val"].dtype in SIXTEEN_BIT


def _fuse(module: fx.GraphModule, conv: fx.Node) -> None:
    graph = module.graph
    arguments: tuple[Any, ...] = conv.args
    x, weight, bias, stride, padding, dilation, _, _, groups = arguments
    chain, z = [conv], _residual(conv)
    if z is not None:
        chain.append(_reader(conv))
        bias = _with_bias_of(module, z, bias, conv)
    act = _act(_reader(chain[-1])) if len(chain[-1].users) == 1 else "none"
    if act != "none":
        chain.append(_reader(chain[-1]))
    acted = next((user for user in conv.users if _act(user) != "none"), None)

    with graph.inserting_after(chain[-1]):
        if act == "relu" and _in_cudnn(module, conv):  # case 1
            steps = (bias, stride, padding, dilation, groups)
            fused = (
                graph.call_function(aten.cudnn_convolution_relu.default, (x, weight, *steps))
                if z is None
                else graph.call_function(
                    aten.cudnn_convolution_add_relu.default, (x, weight, z, 1.0, *steps)
                )
            )
        elif len(chain) == 1 and acted is not None:  # case 3
            _fuse_pair(graph, conv, acted)
            return
        else:  # case 2
            conv.args = (x, weight, None, *arguments[3:])
            fused = graph.call_function(ours.bias_act_.default, (conv, bias, z, act))
    fused.meta = dict(conv.meta)
    chain[-1].replace_all_uses_with(fused, delete_user_cb=lambda user: user is not fused)
    for node in reversed(chain):
        if not node.users:
            graph.erase_node(node)


def _fuse_pair(graph: fx.Graph, conv: fx.Node, acted: fx.Node) -> None:
    bias = conv.args[2]
    conv.update_arg(2, None)
    pair = graph.call_function(ours.bias_act_pair_.default, (conv, bias, _act(acted)))
    pair.meta = {"val": (conv.meta["val"], acted.meta["val"])}
    with graph.inserting_after(pair):
        for old, index in ((acted, 1), (conv, 0)):
            item = graph.call_function(operator.getitem, (pair, index))
            item.meta = dict(old.meta)
            old.replace_all_uses_with(item, delete_user_cb=lambda user: user is not pair)
    graph.erase_node(acted)


def _reader(node: fx.Node) -> fx.Node:
    """The first, or only, node that reads a value."""
    return next(iter(node.users))


def _act(node: fx.Node) -> str:
    """The activation that a node is, in the kernel's words."""
    if node.target is aten.hardtanh.default:
        return "relu6" if node.args[1:] == (0.0, 6.0) else "none"
    return ACTS.get(node.target, "none")


def _residual(conv: fx.Node) -> fx.Node | None:
    """What is added to a convolution that nothing else reads."""
    add = _reader(conv)
    if len(conv.users) != 1 or add.target is not aten.add.Tensor or add.kwargs:
        return None
    (z,) = [arg for arg in add.args if arg is not conv] or [None]
    if not isinstance(z, fx.Node) or not isinstance(z.meta.get("val"), Tensor):
        return None
    value, other = conv.meta["val"], z.meta["val"]
    return z if (value.shape, value.dtype) == (other.shape, other.dtype) else None


def _with_bias_of(module: fx.GraphModule, z: fx.Node, bias: fx.Node, conv: fx.Node) -> fx.Node:
    """Case 4: the bias, and that of z, from which it is taken."""
    if z.target is not aten.convolution.default or len(z.users) != 1:
        return bias
    other: Any = z.args[2]
    if other is None or {bias.op, other.op} != {"get_attr"}:
        return bias
    values = [getattr(module, str(node.target)) for node in (bias, other)]
    z.update_arg(2, None)
    with module.graph.inserting_before(conv):
        total = values[0].float() + values[1].float()
        return add_constant(module, "bias", total.to(values[0].dtype))


def _in_cudnn(module: fx.GraphModule, conv: fx.Node) -> bool:
    """Whether cuDNN's fused operator is to be used.

    Not for groups, for which it is slow; not for channels that fill no vectors, for which it may
    have no kernel; not for float16, which overflows: cuDNN does not promise that its ReLU keeps
    NaN, by which such an image is told.
    """
    arguments: tuple[Any, ...] = conv.args
    _, weight, _, stride, padding, dilation, _, _, groups = arguments
    value = weight.meta.get("val") if weight.op != "get_attr" else getattr(module, weight.target)
    return (
        conv.meta["val"].dtype == torch.bfloat16
        and groups == 1
        and isinstance(value, Tensor)
        and value.shape[0] % 8 == value.shape[1] % 8 == 0
        and len(stride) == len(padding) == len(dilation) == 2
    )
