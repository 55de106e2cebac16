"""Decompose backward operators into forward ones.

Weights are constant, so the data gradient of a convolution is another convolution (with the kernel
flipped in space and transposed in channels), which every runtime runs at full speed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._decomp import get_decompositions

aten = torch.ops.aten


def native_batch_norm_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    save_mean: Tensor | None,
    save_invstd: Tensor | None,
    train: bool,
    eps: float,
    output_mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """In eval mode one factor per channel, in the gradient's dtype, which folds into weights.

    torch's own goes through float32 in 16 bit: a copy there and back that nothing can fold.
    """
    if train or output_mask[1] or output_mask[2] or running_var is None:
        (own,) = get_decompositions([aten.native_batch_norm_backward.default]).values()
        return own(
            *(grad, x, weight, running_mean, running_var),
            *(save_mean, save_invstd, train, eps, output_mask),
        )
    exact = torch.promote_types(running_var.dtype, torch.float32)
    factor = torch.rsqrt(running_var.to(exact) + eps)
    if weight is not None:
        factor = factor * weight.to(exact)
    return grad * factor.to(grad.dtype).view([1, -1] + [1] * (grad.ndim - 2)), None, None


def convolution_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias_sizes: Sequence[int] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    output_mask: Sequence[bool],
) -> tuple[Tensor | None, None, None]:
    """The data gradient; cases:

    1. the forward was transposed: an ordinary convolution;
    2. stride 1 and padding <= d(k - 1): an ordinary convolution with the kernel flipped in space
       and transposed in channels per group, padding d(k - 1) - p;
    3. otherwise: a transposed convolution whose output padding restores the input's size.
    """
    if output_mask[1] or output_mask[2]:
        raise AssertionError("expected no gradient of a frozen weight")
    if not output_mask[0]:
        return None, None, None
    none = [0] * len(stride)
    if transposed:
        return _conv(grad, weight, stride, padding, dilation, False, none, groups), None, None
    reach = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
    if all(s == 1 for s in stride) and all(p <= r for p, r in zip(padding, reach, strict=True)):
        flipped = _flip(weight, groups)
        back = [r - p for r, p in zip(reach, padding, strict=True)]
        return _conv(grad, flipped, stride, back, dilation, False, none, groups), None, None
    sizes = zip(x.shape[2:], grad.shape[2:], stride, padding, reach, strict=True)
    extra = [i - ((o - 1) * s - 2 * p + r + 1) for i, o, s, p, r in sizes]
    return _conv(grad, weight, stride, padding, dilation, True, extra, groups), None, None


def _conv(
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Tensor:
    return aten.convolution(
        x,
        weight,
        None,
        list(stride),
        list(padding),
        list(dilation),
        transposed,
        list(output_padding),
        groups,
    )


def _flip(weight: Tensor, groups: int) -> Tensor:
    """[g*o, i, ...] -> [g*i, o, ...], flipped in space."""
    spatial = list(range(2, weight.ndim))
    flipped = weight.flip(spatial) if any(s > 1 for s in weight.shape[2:]) else weight
    if groups == 1:
        return flipped.transpose(0, 1).contiguous()
    split = flipped.unflatten(0, (groups, -1)).transpose(1, 2)
    return split.flatten(0, 1).contiguous()


def max_pool2d_backward(
    grad: Tensor,
    x: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
    indices: Tensor,
) -> Tensor:
    """Each window's gradient is added where its maximum was."""
    zeros = torch.zeros_like(x).flatten(-2)
    return zeros.scatter_add(-1, indices.flatten(-2), grad.flatten(-2)).view(x.shape)


def adaptive_avg_pool2d_backward(grad: Tensor, x: Tensor) -> Tensor:
    """Adaptive averaging is linear in each axis, Y = R X C^T, so the gradient is R^T G C."""
    if grad.shape[2:] == x.shape[2:]:
        return grad
    rows = _adaptive_matrix(int(x.shape[2]), int(grad.shape[2]), grad)
    columns = _adaptive_matrix(int(x.shape[3]), int(grad.shape[3]), grad)
    return rows.t() @ grad @ columns


def _adaptive_matrix(size: int, out: int, like: Tensor) -> Tensor:
    """[out,size]: cell i averages floor(i size / out) to ceil((i + 1) size / out)."""
    rows = []
    for i in range(out):
        start, end = i * size // out, -((-(i + 1) * size) // out)
        rows.append([1 / (end - start) if start <= j < end else 0.0 for j in range(size)])
    return torch.tensor(rows, dtype=like.dtype, device=like.device)


def adaptive_max_pool2d(x: Tensor, output_size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """An ordinary max pool if the sizes divide, because ONNX has no adaptive one."""
    sizes = list(zip(x.shape[-2:], output_size, strict=True))
    if any(int(size) % out for size, out in sizes):
        return NotImplemented
    kernel = [int(size) // out for size, out in sizes]
    return aten.max_pool2d_with_indices.default(x, kernel, kernel)


def adaptive_max_pool2d_backward(grad: Tensor, x: Tensor, indices: Tensor) -> Tensor:
    """Each window's gradient is added where its maximum was."""
    zeros = torch.zeros_like(x).flatten(-2)
    return zeros.scatter_add(-1, indices.flatten(-2), grad.flatten(-2)).view(x.shape)


def constant_pad_nd(x: Tensor, pad: Sequence[int], value: float = 0) -> Tensor:
    """Negative padding, the backward of padding, as a slice; torch's fixes the batch size."""
    if all(p >= 0 for p in pad):
        return NotImplemented if any(pad) else x
    for i in range(0, len(pad), 2):
        axis = x.ndim - 1 - i // 2
        before, after = max(0, -pad[i]), max(0, -pad[i + 1])
        if before or after:
            x = aten.slice.Tensor(x, axis, before, int(x.shape[axis]) - after)
    grown = [max(0, p) for p in pad]
    return aten.constant_pad_nd.default(x, grown, value) if any(grown) else x


def avg_pool2d_backward(
    grad: Tensor,
    x: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Tensor:
    """Each window's gradient, divided by the number of averaged cells, is spread over the window.

    Spreading is a depthwise transposed convolution with ones; parts of windows outside the input
    (padding, ceil mode) are cut off.
    """
    kernel = list(kernel_size) * (2 // len(kernel_size))
    steps = (list(stride) or kernel) * (2 // len(stride or kernel))
    pads = list(padding) * (2 // len(padding))
    channels = x.shape[1]
    divided = grad / _window_counts(
        x, grad, kernel, steps, pads, count_include_pad, divisor_override
    )
    ones = torch.ones(channels, 1, *kernel, dtype=grad.dtype, device=grad.device)
    full = _conv(divided, ones, steps, [0, 0], [1, 1], True, [0, 0], channels)
    edges = zip(x.shape[2:], full.shape[2:], pads, strict=True)
    (top, bottom), (left, right) = [(-p, int(i) + p - int(o)) for i, o, p in edges]
    if not any((top, bottom, left, right)):
        return full
    return constant_pad_nd(full, [left, right, top, bottom])


def _window_counts(
    x: Tensor,
    grad: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    count_include_pad: bool,
    divisor: int | None,
) -> Tensor | int:
    if divisor is not None:
        return divisor
    axes = []
    for i, o, k, s, p in zip(x.shape[2:], grad.shape[2:], kernel, stride, padding, strict=True):
        start = [w * s - p for w in range(int(o))]
        ends = [min(a + k, int(i) + p) for a in start]
        if not count_include_pad:
            start, ends = [max(a, 0) for a in start], [min(e, int(i)) for e in ends]
        axes.append([e - a for a, e in zip(start, ends, strict=True)])
    if all(c == k for axis, k in zip(axes, kernel, strict=True) for c in axis):
        return kernel[0] * kernel[1]
    rows, columns = (torch.tensor(a, dtype=grad.dtype, device=grad.device) for a in axes)
    return rows[:, None] * columns[None, :]


def upsample_nearest2d_backward(
    grad: Tensor,
    output_size: Sequence[int],
    input_size: Sequence[int],
    scales_h: float | None = None,
    scales_w: float | None = None,
) -> Tensor:
    """See :func:`_resize_backward`."""

    def resize(x: Tensor, size: list[int], h: float | None, w: float | None) -> Tensor:
        return aten.upsample_nearest2d.default(x, size, h, w)

    return _resize_backward(grad, input_size, resize, scales_h, scales_w)


def upsample_bilinear2d_backward(
    grad: Tensor,
    output_size: Sequence[int],
    input_size: Sequence[int],
    align_corners: bool,
    scales_h: float | None = None,
    scales_w: float | None = None,
) -> Tensor:
    """See :func:`_resize_backward`."""

    def resize(x: Tensor, size: list[int], h: float | None, w: float | None) -> Tensor:
        return aten.upsample_bilinear2d.default(x, size, align_corners, h, w)

    return _resize_backward(grad, input_size, resize, scales_h, scales_w)


def _resize_backward(
    grad: Tensor,
    input_size: Sequence[int],
    resize: Callable[[Tensor, list[int], float | None, float | None], Tensor],
    scales_h: float | None,
    scales_w: float | None,
) -> Tensor:
    """Resizing is linear in each axis, Y = R X C^T, so the gradient is R^T G C.

    The two constant matrices are the resized unit vectors.
    """
    (h, w), (out_h, out_w) = input_size[2:], grad.shape[2:]
    unit_h = torch.eye(h, dtype=grad.dtype, device=grad.device)[None, :, :, None]
    unit_w = torch.eye(w, dtype=grad.dtype, device=grad.device)[None, :, None, :]
    rows = resize(unit_h, [out_h, 1], scales_h, None)[0, :, :, 0]  # [h,H]
    columns = resize(unit_w, [1, out_w], None, scales_w)[0, :, 0]  # [w,W]
    return rows @ grad @ columns.t()


def silu(x: Tensor) -> Tensor:
    """x sigmoid(x), with an explicit sigmoid that the backward reuses."""
    return x * torch.sigmoid(x)


def silu_backward(grad: Tensor, x: Tensor) -> Tensor:
    """With s = sigmoid(x) and y = x s, both already in the forward: g (s (x - y + 1))."""
    gate = torch.sigmoid(x)
    return grad * (gate * (x - x * gate + 1))


def decompositions() -> dict[Any, Callable[..., Any]]:
    """The decompositions that the trace uses, by operator."""
    table = get_decompositions(
        [
            aten.native_batch_norm_backward,
            aten.cudnn_batch_norm_backward,
            aten.native_layer_norm_backward,
            aten.native_group_norm_backward,
            aten.threshold_backward,
            aten.gelu_backward,
            aten.hardswish_backward,
            aten.hardsigmoid_backward,
            aten.hardtanh_backward,
            aten.leaky_relu_backward,
            aten.elu_backward,
            aten.mish_backward,
            aten.sigmoid_backward,
            aten.tanh_backward,
            aten.softplus_backward,
            aten._softmax_backward_data,
            aten._log_softmax_backward_data,
            aten.slice_backward,
            aten.select_backward,
            aten.native_dropout_backward,
            aten._prelu_kernel_backward,
        ]
    )
    own: dict[Any, Callable[..., Any]] = {
        aten.native_batch_norm_backward.default: native_batch_norm_backward,
        aten.silu.default: silu,
        aten.silu_backward.default: silu_backward,
        aten.convolution_backward.default: convolution_backward,
        aten.max_pool2d_with_indices_backward.default: max_pool2d_backward,
        aten._adaptive_avg_pool2d_backward.default: adaptive_avg_pool2d_backward,
        aten.adaptive_max_pool2d.default: adaptive_max_pool2d,
        aten.adaptive_max_pool2d_backward.default: adaptive_max_pool2d_backward,
        aten.constant_pad_nd.default: constant_pad_nd,
        aten.upsample_nearest2d_backward.default: upsample_nearest2d_backward,
        aten.upsample_bilinear2d_backward.default: upsample_bilinear2d_backward,
        aten.avg_pool2d_backward.default: avg_pool2d_backward,
    }
    return {**table, **own}
