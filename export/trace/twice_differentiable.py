"""Rewrite operators while tracing into forms that have a second derivative of a symbolic batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

aten = torch.ops.aten


class TwiceDifferentiable(TorchFunctionMode):
    """Rewrites calls whose second derivative torch computes for one batch size, or not at all:

    1. ``batch_norm`` of running statistics becomes a scale and an offset;
    2. ``group_norm``, and ``instance_norm`` of the image's own statistics: means of squares;
    3. ``conv2d`` of several groups keeps its data gradient as an operator of its own, whose
       derivative is the convolution again;
    4. ``hardsigmoid``: ``relu6(x + 3) / 6``.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        rewrite = REWRITES.get(func)
        value = rewrite(*args, **(kwargs or {})) if rewrite is not None else None
        return func(*args, **(kwargs or {})) if value is None else value


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor | None:
    """Case 1; None where the statistics are those of the batch."""
    if training or running_mean is None or running_var is None:
        return None
    scale = (running_var + eps).rsqrt()
    scale = scale if weight is None else scale * weight
    offset = -running_mean * scale
    offset = offset if bias is None else offset + bias
    return input * _per_channel(scale, input) + _per_channel(offset, input)


def _group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Case 2."""
    x = input.unflatten(1, (num_groups, -1))
    axes = tuple(range(2, x.ndim))
    x = x - x.mean(axes, keepdim=True)
    x = (x * ((x * x).mean(axes, keepdim=True) + eps).rsqrt()).flatten(1, 2)
    x = x if weight is None else x * _per_channel(weight, x)
    return x if bias is None else x + _per_channel(bias, x)


def _instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor | None:
    """Case 2; with running statistics, case 1."""
    if not use_input_stats:
        return _batch_norm(input, running_mean, running_var, weight, bias, eps=eps)
    return _group_norm(input, input.shape[1], weight, bias, eps)


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    return values.view(-1, *[1] * (x.ndim - 2)).to(x.dtype)


def _conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor | None:
    """Case 3; None for one group, and where the padding is a word."""
    if groups == 1 or isinstance(padding, str):
        return None
    pairs = [[n, n] if isinstance(n, int) else list(n) for n in (stride, padding, dilation)]
    options = (*pairs, False, [0, 0], groups)
    found: Tensor = _Convolution.apply(input, weight, options)
    return found if bias is None else found + _per_channel(bias, found)


class _Convolution(torch.autograd.Function):
    """Convolution with constant weights."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, options: Any) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.options = options
        found: Tensor = aten.convolution(x, weight, None, *options)
        return found

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        return _DataGradient.apply(grad, x.detach(), weight, ctx.options), None, None


class _DataGradient(torch.autograd.Function):
    """Its gradient with respect to x, of which only the shape is read: linear in ``grad``."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, x: Tensor, weight: Tensor, options: Any) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.options = options
        mask = [True, False, False]
        found: Tensor = aten.convolution_backward(grad, x, weight, None, *options, mask)[0]
        return found

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (weight,) = ctx.saved_tensors
        return _Convolution.apply(grad, weight, ctx.options), None, None, None


def _hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    """Case 4."""
    return F.relu6(input + 3) / 6


REWRITES: dict[Callable[..., Any], Callable[..., Tensor | None]] = {
    F.batch_norm: _batch_norm,
    F.group_norm: _group_norm,
    F.instance_norm: _instance_norm,
    F.conv2d: _conv2d,
    F.hardsigmoid: _hardsigmoid,
}
