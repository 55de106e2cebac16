"""Redirect ``F.interpolate`` to overloads that keep the batch symbolic while tracing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

aten = torch.ops.aten

RESIZES = {  # by mode and antialias
    ("nearest", False): aten.upsample_nearest2d.default,
    ("nearest-exact", False): aten._upsample_nearest_exact2d.default,
    ("bilinear", False): aten.upsample_bilinear2d.default,
    ("bicubic", False): aten.upsample_bicubic2d.default,
    ("bilinear", True): aten._upsample_bilinear2d_aa.default,
    ("bicubic", True): aten._upsample_bicubic2d_aa.default,
}


class SymbolicInterpolate(TorchFunctionMode):
    """Redirects resizing of 4-D tensors to the operators of :data:`RESIZES`.

    The overload that ``F.interpolate`` calls is decomposed in C++, which fixes the batch size.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is F.interpolate:
            resized = _resize(*args, **(kwargs or {}))
            if resized is not None:
                return resized
        return func(*args, **(kwargs or {}))


def _resize(
    input: Tensor,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Tensor | None:
    resize = RESIZES.get((mode, antialias))
    if input.ndim != 4 or resize is None:
        return None
    scales: list[float | None] = [None, None]
    if size is not None:
        sizes = [size, size] if isinstance(size, int) else list(size)
    else:
        factors = scale_factor if isinstance(scale_factor, (tuple, list)) else [scale_factor] * 2
        sizes = [int(int(i) * f) for i, f in zip(input.shape[2:], factors, strict=True)]
        if not recompute_scale_factor:
            scales = [float(f) for f in factors]
    corners = [] if mode in ("nearest", "nearest-exact") else [bool(align_corners)]
    resized: Tensor = resize(input, sizes, *corners, *scales)
    return resized
