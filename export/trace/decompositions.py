"""Decompose backward operators into forward ones.

Weights are constant, so the data gradient of a convolution is another convolution (with the kernel
flipped in space and transposed in channels), which every runtime runs at full speed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._decomp import get_decompositions
from torch._prims_common import suggest_memory_format

from combicam.export.passes.operator_splitting import indexed_max_backward
from combicam.export.trace.interpolate import RESIZES

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
    if groups > 1:
        flipped = flipped.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
    else:
        flipped = flipped.transpose(0, 1)
    return flipped.contiguous(memory_format=suggest_memory_format(weight))


def adaptive_avg_pool_backward(grad: Tensor, x: Tensor) -> Tensor:
    """Adaptive averaging is linear in each axis, see :func:`_along`."""
    if grad.shape[2:] == x.shape[2:]:
        return grad
    sizes = zip(x.shape[2:], grad.shape[2:], strict=True)
    return _along(grad, [_adaptive_matrix(int(i), int(o), grad).t() for i, o in sizes])


def adaptive_avg_pool3d(x: Tensor, output_size: Sequence[int]) -> Tensor:
    """The matrices of :func:`_adaptive_matrix`: ONNX has no adaptive average in three axes."""
    sizes = zip(x.shape[-3:], output_size, strict=True)
    return _along(x, [_adaptive_matrix(int(i), int(o), x) for i, o in sizes])


def _adaptive_matrix(size: int, out: int, like: Tensor) -> Tensor:
    """[out,size]: cell i averages floor(i size / out) to ceil((i + 1) size / out)."""
    rows = []
    for i in range(out):
        start, end = i * size // out, -((-(i + 1) * size) // out)
        rows.append([1 / (end - start) if start <= j < end else 0.0 for j in range(size)])
    return torch.tensor(rows, dtype=like.dtype, device=like.device)


def adaptive_max_pool(x: Tensor, output_size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The maxima and their indices, in the pixels of an image; ONNX has no adaptive pool.

    An ordinary max pool if the sizes divide; otherwise the windows are gathered, the smaller ones
    with their last pixel repeated.
    """
    sizes = [int(size) for size in x.shape[-len(output_size) :]]
    pairs = list(zip(sizes, output_size, strict=True))
    if len(sizes) == 2 and not any(size % out for size, out in pairs):
        kernel = [size // out for size, out in pairs]
        return aten.max_pool2d_with_indices.default(x, kernel, kernel)
    pixels = torch.arange(math.prod(sizes)).view(sizes)
    for axis, (size, out) in enumerate(pairs):
        ends = [-((-(i + 1) * size) // out) for i in range(out)]
        longest = max(end - i * size // out for i, end in enumerate(ends))
        rows = [
            [min(i * size // out + k, end - 1) for k in range(longest)]
            for i, end in enumerate(ends)
        ]
        pixels = pixels.movedim(axis, 0)[torch.tensor(rows)].movedim((0, 1), (axis, -1))
    table = pixels.flatten(len(sizes)).to(x.device)  # [*output_size, pixels of a window]
    windows = x.flatten(-len(sizes)).index_select(-1, table.flatten())
    maxima, where = windows.unflatten(-1, table.shape).max(-1)
    indices = table.expand(*where.shape, table.shape[-1]).gather(-1, where.unsqueeze(-1))
    return maxima, indices.squeeze(-1)


def replication_pad_backward(grad: Tensor, x: Tensor, padding: Sequence[int]) -> Tensor:
    """Repeating the edges is linear in each axis, see :func:`_along`."""
    matrices = []
    for back in range(len(padding) // 2):
        size, (before, after) = int(x.shape[-1 - back]), padding[2 * back : 2 * back + 2]
        sources = (torch.arange(size + before + after) - before).clamp(0, size - 1)
        matrix = sources == torch.arange(size)[:, None]  # [size, padded size]
        matrices.append(matrix.to(grad.device, grad.dtype))
    return _along(grad, matrices[::-1])


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


def avg_pool(
    x: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """With another divisor: the average of padded, whole windows, scaled; ONNX ignores it."""
    if divisor_override is None:
        return NotImplemented
    axes = 2 if x.ndim < 5 else 3
    pool = aten.avg_pool2d.default if axes == 2 else aten.avg_pool3d.default
    kernel = list(kernel_size) * (axes // len(kernel_size))
    steps = (list(stride) or kernel) * (axes // len(stride or kernel))
    pads = list(padding) * (axes // len(padding))
    around = []
    for size, k, s, p in reversed(list(zip(x.shape[-axes:], kernel, steps, pads, strict=True))):
        left = int(size) + 2 * p - k
        windows = -(-left // s) if ceil_mode else left // s
        if ceil_mode and windows * s >= int(size) + p:  # windows start inside the image
            windows -= 1
        around += [p, p + max(0, windows * s - left)]
    padded = aten.constant_pad_nd.default(x, around) if any(around) else x
    return pool(padded, kernel, steps) * (math.prod(kernel) / divisor_override)


def avg_pool_backward(
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
    axes = 2 if x.ndim < 5 else 3
    kernel = list(kernel_size) * (axes // len(kernel_size))
    steps = (list(stride) or kernel) * (axes // len(stride or kernel))
    pads = list(padding) * (axes // len(padding))
    channels = x.shape[1]
    divided = grad / _window_counts(
        x, grad, kernel, steps, pads, count_include_pad, divisor_override
    )
    ones = torch.ones(channels, 1, *kernel, dtype=grad.dtype, device=grad.device)
    none = [0] * axes
    full = _conv(divided, ones, steps, none, [1] * axes, True, none, channels)
    edges = reversed(list(zip(x.shape[2:], full.shape[2:], pads, strict=True)))
    cut = [side for i, o, p in edges for side in (-p, int(i) + p - int(o))]
    return aten.constant_pad_nd.default(full, cut) if any(cut) else full


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
        return math.prod(kernel)
    counts = torch.ones((), dtype=grad.dtype, device=grad.device)
    for axis in axes:
        counts = counts[..., None] * torch.tensor(axis, dtype=grad.dtype, device=grad.device)
    return counts


def resize_backward(resize: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The backward of a 2-D resizing operator, which is linear in each axis: see :func:`_along`.

    The two constant matrices are the resized unit vectors.

    Args:
        resize: (x, output_size[, align_corners], scale_h, scale_w).
    """

    def backward(
        grad: Tensor, output_size: Sequence[int], input_size: Sequence[int], *options: Any
    ) -> Tensor:
        corners = [option for option in options if isinstance(option, bool)]
        scale_h, scale_w = (*options[len(corners) :], None, None)[:2]
        (h, w), (out_h, out_w) = input_size[2:], grad.shape[2:]
        # Every vector twice: torch's antialiasing is wrong for images of a single row or column.
        unit_h = torch.eye(h, dtype=grad.dtype, device=grad.device)[None, :, :, None].repeat(
            1, 1, 1, 2
        )
        unit_w = torch.eye(w, dtype=grad.dtype, device=grad.device)[None, :, None].repeat(
            1, 1, 2, 1
        )
        rows = resize(unit_h, [out_h, 2], *corners, scale_h, None)[0, :, :, 0]  # [h,H]
        columns = resize(unit_w, [2, out_w], *corners, None, scale_w)[0, :, 0]  # [w,W]
        return rows @ grad @ columns.t()

    return backward


def upsample_nearest_exact2d(
    x: Tensor,
    output_size: Sequence[int],
    scale_h: float | None = None,
    scale_w: float | None = None,
) -> Tensor:
    """A selection of rows and columns: there is no such operator in ONNX."""
    for axis, out, scale in zip((-2, -1), output_size, (scale_h, scale_w), strict=True):
        exact = torch.promote_types(x.dtype, torch.float32)  # in which torch computes positions
        pixels = torch.arange(x.shape[axis], dtype=exact, device=x.device)[None, None]
        index = aten._upsample_nearest_exact1d.default(pixels, [out], scale)
        x = x.index_select(axis, index[0, 0].long())
    return x


def _along(x: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """Multiply the last axes of x by one matrix [out,in] each: the backward of what is linear in
    each axis, Y = R X C^T, is R^T G C."""
    for back, matrix in enumerate(reversed(matrices)):
        axis = x.ndim - 1 - back
        x = (x.transpose(axis, -1) @ matrix.t()).transpose(axis, -1)
    return x


def unfold_backward(
    grad: Tensor, input_sizes: Sequence[int], dim: int, size: int, step: int
) -> Tensor:
    """The gradient of every window is added where it was; torch's indices are no int64 for ONNX."""
    axis = dim % len(input_sizes)
    windows = grad.movedim(-1, axis + 1)
    pixels = torch.arange(windows.shape[axis], device=grad.device)[:, None] * step
    pixels = pixels + torch.arange(size, device=grad.device)
    zeros = grad.new_zeros(input_sizes)
    return zeros.index_add(axis, pixels.flatten(), windows.flatten(axis, axis + 1))


def decompositions() -> dict[Any, Callable[..., Any]]:
    """The decompositions that the trace uses, by operator."""
    table = get_decompositions(
        [
            aten.native_batch_norm_backward,
            aten.cudnn_batch_norm_backward,
            aten.native_layer_norm_backward,
            aten.native_group_norm_backward,
            aten.slice_backward,
            aten.select_backward,
            aten.native_dropout_backward,
            aten._prelu_kernel_backward,
        ]
    )
    own: dict[Any, Callable[..., Any]] = {
        aten.native_batch_norm_backward.default: native_batch_norm_backward,
        aten.convolution_backward.default: convolution_backward,
        aten.max_pool3d_with_indices_backward.default: indexed_max_backward(3),
        aten._adaptive_avg_pool2d_backward.default: adaptive_avg_pool_backward,
        aten._adaptive_avg_pool3d.default: adaptive_avg_pool3d,
        aten._adaptive_avg_pool3d_backward.default: adaptive_avg_pool_backward,
        aten.adaptive_max_pool2d.default: adaptive_max_pool,
        aten.adaptive_max_pool3d.default: adaptive_max_pool,
        aten.adaptive_max_pool2d_backward.default: indexed_max_backward(2),
        aten.adaptive_max_pool3d_backward.default: indexed_max_backward(3),
        aten.constant_pad_nd.default: constant_pad_nd,
        aten._upsample_nearest_exact2d.default: upsample_nearest_exact2d,
        aten.replication_pad1d_backward.default: replication_pad_backward,
        aten.replication_pad2d_backward.default: replication_pad_backward,
        aten.replication_pad3d_backward.default: replication_pad_backward,
        aten.unfold_backward.default: unfold_backward,
        aten.avg_pool2d.default: avg_pool,
        aten.avg_pool3d.default: avg_pool,
        aten.avg_pool2d_backward.default: avg_pool_backward,
        aten.avg_pool3d_backward.default: avg_pool_backward,
        **{
            getattr(aten, f"{resize.overloadpacket.__name__}_backward").default: resize_backward(
                resize
            )
            for resize in RESIZES.values()
        },
    }
    return {**table, **own}
