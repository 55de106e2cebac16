"""Rewrite operators while tracing into forms that keep the batch symbolic."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._decomp import get_decompositions
from torch.overrides import TorchFunctionMode

aten = torch.ops.aten


class PlainOperators(TorchFunctionMode):
    """Rewrites calls that cannot be traced as they are; cases:

    1. ``adaptive_avg_pool2d(x, 1)`` becomes a mean, as in torch itself, which for channels-last
       grids of tokens also sets the result's strides in place, and no file format can express that;
    2. ``pad`` with a constant becomes a concatenation: torch's fixes the batch size;
    3. ``addcmul(x, a, b)`` becomes x + a b: if shapes broadcast, torch's fixes the batch size;
    4. ``affine_grid`` becomes a product with a constant: torch's fixes the batch size;
    5. ``grid_sample`` becomes gathers: ONNX has no backward of its own;
    6. ``rrelu`` in eval mode becomes a leaky ReLU, and ``softshrink``, ``hardshrink`` become
       selections: torch's have no symbolic form, or ONNX has none;
    7. ``bilinear`` becomes two products, which ONNX has.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        rewrite = REWRITES.get(func)
        if rewrite is not None:
            value = rewrite(*args, **(kwargs or {}))
            if value is not None:
                return value
        return func(*args, **(kwargs or {}))


def _global_pool(input: Tensor, output_size: Any) -> Tensor | None:
    """Case 1; None for other sizes."""
    sizes = (output_size,) if isinstance(output_size, int) else tuple(output_size)
    return input.mean((-1, -2), keepdim=True) if all(n == 1 for n in sizes) else None


def _pad(
    input: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None
) -> Tensor | None:
    """Case 2; None for other modes, for negative padding, and if the batch itself is padded."""
    if mode != "constant" or any(p < 0 for p in pad) or len(pad) >= 2 * input.ndim:
        return None
    for i in range(0, len(pad), 2):
        axis = input.ndim - 1 - i // 2
        around = [_block(input, axis, int(n), value or 0.0) for n in pad[i : i + 2]]
        if any(block is not None for block in around):
            parts = [around[0], input, around[1]]
            input = torch.cat([part for part in parts if part is not None], axis)
    return input


def _block(x: Tensor, axis: int, size: int, value: float) -> Tensor | None:
    shape = [*x.shape[:axis], size, *x.shape[axis + 1 :]]
    return x.new_full(shape, value) if size else None


def _addcmul(input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: float = 1) -> Tensor:
    """Case 3."""
    product = tensor1 * tensor2
    return input + (product if value == 1 else value * product)


def _affine_grid(theta: Tensor, size: Sequence[Any], align_corners: bool | None = None) -> Tensor:
    """Case 4: theta [B,d,d+1] -> [B,*spatial,d], positions in [-1, 1], the last axis first."""
    spatial = [int(n) for n in size[2:]]
    axes = []
    for n in spatial:
        axis = torch.linspace(-1, 1, n, dtype=theta.dtype, device=theta.device)
        axis = axis * 0 if n == 1 else axis
        axes.append(axis if align_corners else axis * (n - 1) / n)
    grids = torch.meshgrid(*axes, indexing="ij")
    base = torch.stack([*reversed(grids), torch.ones_like(grids[0])], -1).flatten(0, -2)
    return (base @ theta.transpose(1, 2)).unflatten(1, spatial)


def _grid_sample(
    input: Tensor,
    grid: Tensor,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool | None = None,
) -> Tensor | None:
    """Case 5; None for volumes."""
    if input.ndim != 4:
        return None
    modes = ("bilinear", "nearest", "bicubic").index(mode)
    padding = ("zeros", "border", "reflection").index(padding_mode)
    sample = get_decompositions([aten.grid_sampler_2d])[aten.grid_sampler_2d.default]
    return sample(input, grid, modes, padding, bool(align_corners))


def _rrelu(
    input: Tensor,
    lower: float = 1.0 / 8,
    upper: float = 1.0 / 3,
    training: bool = False,
    inplace: bool = False,
) -> Tensor | None:
    """Case 6; None in training mode."""
    return None if training else F.leaky_relu(input, (lower + upper) / 2)


def _softshrink(input: Tensor, lambd: float = 0.5) -> Tensor:
    """Case 6."""
    return torch.where(input.abs() > lambd, input - lambd * input.sign(), 0.0 * input)


def _hardshrink(input: Tensor, lambd: float = 0.5) -> Tensor:
    """Case 6."""
    return torch.where(input.abs() > lambd, input, 0.0 * input)


def _bilinear(input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Case 7."""
    rows = torch.einsum("...i,oij->...oj", input1, weight)
    product = (rows * input2.unsqueeze(-2)).sum(-1)
    return product if bias is None else product + bias


REWRITES: dict[Callable[..., Any], Callable[..., Tensor | None]] = {
    F.adaptive_avg_pool2d: _global_pool,
    torch._C._nn.adaptive_avg_pool2d: _global_pool,
    F.pad: _pad,
    torch._C._nn.pad: _pad,
    torch.addcmul: _addcmul,
    Tensor.addcmul: _addcmul,
    F.affine_grid: _affine_grid,
    F.grid_sample: _grid_sample,
    F.bilinear: _bilinear,
    F.rrelu: _rrelu,
    F.softshrink: _softshrink,
    F.hardshrink: _hardshrink,
    torch.hardshrink: _hardshrink,
}
