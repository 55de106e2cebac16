"""Determine which tensors ONNX Runtime's CPU provider keeps in its blocked layout (NCHWc).

Convolutions need channels in blocks of 8 or 16. An operator that cannot read blocks costs a
reorder of every input and, before the next convolution, of its output: two passes over memory,
each as slow as an element-wise operator. Blocks survive Conv, Add, Mul, Relu, Sigmoid, Tanh,
BatchNormalization, pools, nearest Resize and Concat if all inputs are blocked and have the same
shape, but no scalar constants or broadcasts; and Clip if it is all that reads a convolution.
(onnxruntime: nchwc_transformer.cc)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from combicam.export.passes import onnx_ops as onnx_ops  # defines torch.ops.combicam

aten, ours = torch.ops.aten, torch.ops.combicam
BLOCK = 16  # channels; 8 without AVX-512
ELEMENTWISE = (
    aten.relu.default,
    aten.sigmoid.default,
    aten.tanh.default,
    aten.add.Tensor,
    aten.mul.Tensor,
)
CHANNELWISE = (ours.affine.default, ours.global_mean.default, ours.spread.default)


class BlockedLayout:
    """Decides whether nodes of a graph will be blocked, and caches the answers."""

    def __init__(self) -> None:
        self._known: dict[fx.Node, bool] = {}

    def __call__(self, node: object) -> bool:
        """Whether a node's value is float32 [B,C,h,w] and blocked."""
        if not isinstance(node, fx.Node) or node.op != "call_function":
            return False
        if node not in self._known:
            self._known[node] = False  # for recursion
            self._known[node] = _aligned(node) and self._blocked(node)
        return self._known[node]

    def _blocked(self, node: fx.Node) -> bool:
        if node.target in (aten.convolution.default, ours.convolution.default):
            return _blocked_convolution(node)
        if node.target is aten.hardtanh.default:
            x = node.args[0]
            assert isinstance(x, fx.Node)
            return x.target is aten.convolution.default and len(x.users) == 1 and self(x)
        if node.target in CHANNELWISE:
            return self(node.args[0])
        if node.target in ELEMENTWISE:
            inputs = node.args[:2] if node.target in ELEMENTWISE[3:] else node.args[:1]
            same = all(shape_of(n) == shape_of(node) for n in inputs)
            return same and all(self(n) for n in inputs)
        return False


def _blocked_convolution(node: fx.Node) -> bool:
    arguments: tuple[Any, ...] = node.args
    x, weight, transposed, groups = (arguments[i] for i in (0, 1, 6, 8))
    if transposed or not isinstance(weight, fx.Node) or weight.op != "get_attr":
        return False
    shape, inputs = shape_of(weight), shape_of(x)
    if shape is None or inputs is None or len(shape) != 4:
        return False
    per_group = int(shape[1])
    if groups == 1:
        return per_group < BLOCK or per_group % BLOCK == 0
    depthwise = per_group == 1 and int(shape[0]) == groups
    return depthwise or (per_group % BLOCK == 0 and int(shape[0]) // int(groups) % BLOCK == 0)


def _aligned(node: fx.Node) -> bool:
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or value.dtype != torch.float32 or value.ndim != 4:
        return False
    channels = value.shape[1]
    return isinstance(channels, int) and channels % BLOCK == 0  # int() would fix a symbolic batch


def shape_of(node: object) -> torch.Size | None:
    """The shape recorded by the trace, or a constant's."""
    if not isinstance(node, fx.Node):
        return None
    if node.op == "get_attr":
        value = getattr(node.graph.owning_module, str(node.target), None)
    else:
        value = node.meta.get("val")
    return value.shape if isinstance(value, Tensor) else None


def is_grid(node: object) -> bool:
    """Whether a node's value is [B,C,h,w] with more than one cell."""
    shape = shape_of(node)
    if shape is None or len(shape) != 4 or not all(isinstance(n, int) for n in shape[1:]):
        return False
    return bool(shape[2] * shape[3] > 1)


def broadcasts(x: object, gate: object) -> bool:
    """Whether the gate is [B,C,1,1] and x a grid."""
    large, small = shape_of(x), shape_of(gate)
    if large is None or small is None or not is_grid(x):
        return False
    return len(small) == 4 and (*large[:2], 1, 1) == tuple(small)
