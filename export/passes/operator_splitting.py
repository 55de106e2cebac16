"""Split fused operators of torch into those that ONNX has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch._decomp import get_decompositions
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from combicam.export.passes.inlining import inline

aten = torch.ops.aten


class OperatorSplitting(PassBase):
    """silu_backward(g, x)  ->  g (s (x - x s + 1)), s = sigmoid(x), and the like.

    Torch, Inductor and TorchScript compute each of these in one pass over memory.
    """

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        table = splits()
        found = [node for node in graph_module.graph.nodes if node.target in table]
        for node in found:
            inline(graph_module, node, table[node.target])
        return PassResult(graph_module, bool(found))


def splits() -> dict[Any, Callable[..., Any]]:
    """What is split, and its form."""
    table: dict[Any, Callable[..., Any]] = get_decompositions(
        [
            aten.threshold_backward,
            aten.gelu_backward,
            aten.hardswish_backward,
            aten.hardsigmoid_backward,
            aten.leaky_relu_backward,
            aten.elu_backward,
            aten.mish_backward,
            aten.tanh_backward,
            aten.softplus_backward,
            aten._softmax_backward_data,
            aten._log_softmax_backward_data,
        ]
    )
    own: dict[Any, Callable[..., Any]] = {
        aten.silu.default: silu,
        aten.silu_backward.default: silu_backward,
        aten.sigmoid_backward.default: sigmoid_backward,
        aten.hardtanh_backward.default: hardtanh_backward,
        aten.max_pool2d_with_indices_backward.default: indexed_max_backward(2),
    }
    return {
        **{op: form for op, form in table.items() if op._overloadname == "default"},
        **own,
    }


def silu(x: Tensor) -> Tensor:
    """x sigmoid(x), with an explicit sigmoid that the backward reuses."""
    return x * torch.sigmoid(x)


def silu_backward(grad: Tensor, x: Tensor) -> Tensor:
    """With s = sigmoid(x) and y = x s, both already in the forward: g (s (x - y + 1))."""
    gate = torch.sigmoid(x)
    return grad * (gate * (x - x * gate + 1))


def sigmoid_backward(grad: Tensor, gate: Tensor) -> Tensor:
    """With s = sigmoid(x): g s (1 - s), in the type of g."""
    return grad * (gate * (1 - gate))


def hardtanh_backward(grad: Tensor, x: Tensor, low: float, high: float) -> Tensor:
    """g within the bounds, else zero, in the type of g."""
    zero = torch.zeros((), dtype=grad.dtype, device=grad.device)
    return torch.where((x <= low) | (x >= high), zero, grad)


def indexed_max_backward(axes: int) -> Callable[..., Tensor]:
    """The backward of max pools of so many axes, from their indices."""

    def backward(grad: Tensor, x: Tensor, *options: Any) -> Tensor:
        """Each window's gradient is added where its maximum was."""
        indices = options[-1].flatten(-axes)
        # ONNX Runtime's CPU provider adds no float16 there.
        zeros = torch.zeros_like(x, dtype=torch.float32).flatten(-axes)
        added = zeros.scatter_add(-1, indices, grad.float().flatten(-axes))
        return added.view(x.shape).to(x.dtype)

    return backward
