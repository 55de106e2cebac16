"""Define operators of ONNX that aten does not have, or that the exporter would decompose.

A graph has them only between the ONNX passes and the file.
"""

from __future__ import annotations

import torch
from torch import Tensor

aten = torch.ops.aten


@torch.library.custom_op("combicam::resize", mutates_args=())
def resize(
    x: Tensor,
    height: int,
    width: int,
    align_corners: bool,
    scale_h: float | None,
    scale_w: float | None,
) -> Tensor:
    """Bilinear upsampling, see ``aten::upsample_bilinear2d``."""
    return aten.upsample_bilinear2d.default(x, [height, width], align_corners, scale_h, scale_w)


@resize.register_fake
def _(
    x: Tensor,
    height: int,
    width: int,
    align_corners: bool,
    scale_h: float | None,
    scale_w: float | None,
) -> Tensor:
    return x.new_empty([*x.shape[:2], height, width])


@torch.library.custom_op("combicam::convolution", mutates_args=())
def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
) -> Tensor:
    """See ``aten::convolution``; ``padding`` is [top, left, bottom, right]."""
    top, left, bottom, right = padding
    if transposed:
        whole = aten.convolution.default(
            x, weight, bias, stride, [0, 0], dilation, True, output_padding, groups
        )
        return whole[:, :, top : whole.shape[2] - bottom, left : whole.shape[3] - right].clone()
    x = aten.constant_pad_nd.default(x, [left, right, top, bottom])
    return aten.convolution.default(
        x, weight, bias, stride, [0, 0], dilation, False, output_padding, groups
    )


@convolution.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
) -> Tensor:
    channels = weight.shape[1] * groups if transposed else weight.shape[0]
    size = []
    for i in range(2):
        lost = padding[i] + padding[i + 2]
        reach = dilation[i] * (weight.shape[i + 2] - 1)
        if transposed:
            size.append((x.shape[i + 2] - 1) * stride[i] + reach + 1 + output_padding[i] - lost)
        else:
            size.append((x.shape[i + 2] + lost - reach - 1) // stride[i] + 1)
    return x.new_empty([x.shape[0], channels, *size])


@torch.library.custom_op("combicam::spread", mutates_args=())
def spread(x: Tensor, height: int, width: int) -> Tensor:
    """[B,C,h,w] -> [B,C,height h,width w]: every pixel becomes height x width of its value."""
    return x.repeat_interleave(height, 2).repeat_interleave(width, 3)


@spread.register_fake
def _(x: Tensor, height: int, width: int) -> Tensor:
    return x.new_empty([*x.shape[:2], x.shape[2] * height, x.shape[3] * width])


@torch.library.custom_op("combicam::global_mean", mutates_args=())
def global_mean(x: Tensor) -> Tensor:
    """[B,C,h,w] -> [B,C,1,1]."""
    return x.mean((2, 3), keepdim=True)


@global_mean.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty([*x.shape[:2], 1, 1])


@torch.library.custom_op("combicam::affine", mutates_args=())
def affine(x: Tensor, scale: Tensor, shift: Tensor, zero: Tensor, one: Tensor) -> Tensor:
    """scale x + shift per channel: batch normalisation with mean zero and variance one."""
    return x * scale[:, None, None] + shift[:, None, None]


@affine.register_fake
def _(x: Tensor, scale: Tensor, shift: Tensor, zero: Tensor, one: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("combicam::max_pool", mutates_args=())
def max_pool(x: Tensor, kernel: list[int]) -> tuple[Tensor, Tensor]:
    """Maxima of windows that do not overlap, and their indices in the whole of x."""
    maxima, inside = aten.max_pool2d_with_indices.default(x, kernel, kernel)
    planes = torch.arange(x.shape[0] * x.shape[1], device=x.device).view(*x.shape[:2], 1, 1)
    return maxima, inside + planes * (x.shape[2] * x.shape[3])


@max_pool.register_fake
def _(x: Tensor, kernel: list[int]) -> tuple[Tensor, Tensor]:
    shape = [*x.shape[:2], x.shape[2] // kernel[0], x.shape[3] // kernel[1]]
    return x.new_empty(shape), x.new_empty(shape, dtype=torch.int64)


@torch.library.custom_op("combicam::max_unpool", mutates_args=())
def max_unpool(grad: Tensor, indices: Tensor, x: Tensor, kernel: list[int]) -> Tensor:
    """Zeros in the shape of x, with ``grad`` at the positions of the maxima."""
    zeros = grad.new_zeros(x.numel())
    return zeros.scatter(0, indices.flatten(), grad.flatten()).view(x.shape)


@max_unpool.register_fake
def _(grad: Tensor, indices: Tensor, x: Tensor, kernel: list[int]) -> Tensor:
    return torch.empty_like(x)
