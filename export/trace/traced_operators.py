"""Rewrite operators while tracing into forms that keep the batch symbolic."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class PlainOperators(TorchFunctionMode):
    """Rewrites calls that cannot be traced as they are; cases:

    1. ``adaptive_avg_pool2d(x, 1)`` becomes a mean, as in torch itself, which for channels-last
       grids of tokens also sets the result's strides in place, and no file format can express that;
    2. ``pad`` with a constant becomes a concatenation: torch's fixes the batch size;
    3. ``addcmul(x, a, b)`` becomes x + a b: if shapes broadcast, torch's fixes the batch size.
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


REWRITES: dict[Callable[..., Any], Callable[..., Tensor | None]] = {
    F.adaptive_avg_pool2d: _global_pool,
    torch._C._nn.adaptive_avg_pool2d: _global_pool,
    F.pad: _pad,
    torch._C._nn.pad: _pad,
    torch.addcmul: _addcmul,
    Tensor.addcmul: _addcmul,
}
