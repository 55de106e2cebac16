"""Global average pooling while tracing: as a mean, whatever the memory format."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

POOLS = (F.adaptive_avg_pool2d, torch._C._nn.adaptive_avg_pool2d)


class MeanGlobalPool(TorchFunctionMode):
    """Takes ``adaptive_avg_pool2d(x, 1)`` as ``x.mean((-1, -2), keepdim=True)``.

    So does torch; but where x is a grid of tokens, channels last, torch then sets the strides of
    the result in place, which no file format has.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func in POOLS:
            pooled = _pool(*args, **(kwargs or {}))
            if pooled is not None:
                return pooled
        return func(*args, **(kwargs or {}))


def _pool(input: Tensor, output_size: Any) -> Tensor | None:
    size = (output_size,) if isinstance(output_size, int) else tuple(output_size)
    if any(n != 1 for n in size):
        return None
    return input.mean((-1, -2), keepdim=True)
