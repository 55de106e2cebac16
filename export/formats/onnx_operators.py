"""Our operators in ONNX. Slow to import: only what writes a file does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from onnxscript import opset18

ours = torch.ops.combicam


def _onnx_resize(
    x: Any,
    height: int,
    width: int,
    align_corners: bool,
    scale_h: float | None = None,
    scale_w: float | None = None,
) -> Any:
    mode = "align_corners" if align_corners else "pytorch_half_pixel"
    if scale_h is not None and scale_w is not None:  # the factor determines the sampling positions
        scales: Any = opset18.Constant(value_floats=[1.0, 1.0, scale_h, scale_w])
        return opset18.Resize(x, None, scales, mode="linear", coordinate_transformation_mode=mode)
    batch: Any = opset18.Shape(x, start=0, end=2)
    sizes: Any = opset18.Concat(batch, opset18.Constant(value_ints=[height, width]), axis=0)
    return opset18.Resize(x, None, None, sizes, mode="linear", coordinate_transformation_mode=mode)


def _onnx_convolution(
    x: Any,
    weight: Any,
    bias: Any,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Any:
    options: dict[str, Any] = {"strides": stride, "pads": padding, "dilations": dilation}
    if transposed:
        return opset18.ConvTranspose(
            x, weight, bias, group=groups, output_padding=output_padding, **options
        )
    return opset18.Conv(x, weight, bias, group=groups, **options)


def _onnx_spread(x: Any, height: int, width: int) -> Any:
    scales: Any = opset18.Constant(value_floats=[1.0, 1.0, float(height), float(width)])
    return opset18.Resize(
        x,
        None,
        scales,
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )


def _onnx_global_mean(x: Any) -> Any:
    return opset18.GlobalAveragePool(x)


def _onnx_affine(x: Any, scale: Any, shift: Any, zero: Any, one: Any) -> Any:
    return opset18.BatchNormalization(x, scale, shift, zero, one, epsilon=0.0)


def _onnx_max_pool(x: Any, kernel: Sequence[int]) -> Any:
    return opset18.MaxPool(x, kernel_shape=list(kernel), strides=list(kernel))


def _onnx_max_unpool(grad: Any, indices: Any, x: Any, kernel: Sequence[int]) -> Any:
    shape: Any = opset18.Shape(x)
    size = list(kernel)
    return opset18.MaxUnpool(grad, indices, shape, kernel_shape=size, strides=size)


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    ours.resize.default: _onnx_resize,
    ours.convolution.default: _onnx_convolution,
    ours.spread.default: _onnx_spread,
    ours.global_mean.default: _onnx_global_mean,
    ours.affine.default: _onnx_affine,
    ours.max_pool.default: _onnx_max_pool,
    ours.max_unpool.default: _onnx_max_unpool,
}
