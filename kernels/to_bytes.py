"""Round maps to bytes, and find those that are not finite, in one pass.

Torch's operators for it read and write every map six times.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from combicam.kernels.jit import LaunchPlan, cdiv, jit, launch, on_device, tl

BLOCK = 4096  # values of one program: four loads of 16 bytes for each of 256 threads
TINY = torch.finfo(torch.float32).tiny


def rounded(unit: Tensor) -> Tensor:
    """float32 in [0, 1] as uint8: 255 x, rounded half to even; NaN as 0."""
    return unit.nan_to_num(0.0).mul_(255).round_().clamp_(0, 255).to(torch.uint8)


def are_finite(x: Tensor) -> Tensor:
    """Whether all values of each image are finite: [B,...] -> bool [B].

    By their extremes, which cost a CPU a tenth of looking at each.
    """
    flat = x.flatten(1)
    return flat.amin(1).isfinite() & flat.amax(1).isfinite()


def to_bytes_reference(maps: Tensor, highs: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """:func:`to_bytes` in standard torch operations."""
    unit = maps.float()
    if highs is not None:
        unit = unit / highs.clamp_min(TINY)[..., None, None]
    return rounded(unit), are_finite(maps)


@jit
def in_bytes(value):
    """:func:`rounded`, before the change of type."""
    value = tl.where(value != value, 0.0, value)
    # Between the product and the addition, so that no compiler fuses them.
    value = tl.minimum(tl.maximum(value * 255, 0.0), 255.0)
    # Adding 1.5 * 2^23 leaves no bits for a fraction: rounds half to even.
    return (value + 12582912.0) - 12582912.0


@jit
def to_bytes_kernel(
    maps_ptr,  # float [N, P]
    highs_ptr,  # float32 [N]; read where HAS_HIGHS
    bytes_ptr,  # uint8 [N, P]
    finite_ptr,  # bool [N, T]
    P,
    T,  # programs of a map
    HAS_HIGHS: tl.constexpr,
    LEAST: tl.constexpr,  # TINY
    BLOCK: tl.constexpr,
):
    """One program for each block of a map."""
    i_n = (tl.program_id(0) // T).to(tl.int64)
    i_t = tl.program_id(0) % T
    o_p = i_t * BLOCK + tl.arange(0, BLOCK)
    m_p = o_p < P
    value = tl.load(maps_ptr + i_n * P + o_p, mask=m_p, other=0).to(tl.float32)
    infinite = tl.max((tl.abs(value) == float("inf")).to(tl.int32), 0)
    nan = tl.max((value != value).to(tl.int32), 0)
    tl.store(finite_ptr + i_n * T + i_t, infinite + nan == 0)
    if HAS_HIGHS:
        high = tl.load(highs_ptr + i_n)
        value = tl.div_rn(value, tl.maximum(high, LEAST, propagate_nan=tl.PropagateNan.ALL))
    tl.store(bytes_ptr + i_n * P + o_p, in_bytes(value).to(tl.uint8), mask=m_p)


def launch_to_bytes(maps: Tensor, highs: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Launch the kernel, on the current device: :func:`to_bytes_reference`."""
    maps = maps.contiguous()
    images, targets, *grid = maps.shape
    pixels = grid[0] * grid[1]
    tiles = cdiv(pixels, BLOCK)
    result = torch.empty_like(maps, dtype=torch.uint8)
    finite = maps.new_empty(images, targets * tiles, dtype=torch.bool)
    tensors = (maps, maps if highs is None else highs.contiguous(), result, finite)
    plan = _plan(highs is not None)
    launch(to_bytes_kernel, plan, images * targets * tiles, tensors, pixels, tiles)
    return result, finite.all(1)


@cache
def _plan(has_highs: bool) -> LaunchPlan:
    """Counted by blocks of maps."""
    return LaunchPlan(1, {"HAS_HIGHS": has_highs, "LEAST": TINY, "BLOCK": BLOCK}, num_warps=8)


def to_bytes(maps: Tensor, highs: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Round maps to bytes.

    Args:
        maps: [B,K,h,w], of any float type.
        highs: float32 [B,K], what 255 stands for in each map, at least 0; None for 1.

    Returns:
        uint8 [B,K,h,w], half to even; NaN becomes 0, and what lies beyond [0, highs] its nearest
        bound. And bool [B]: whether all values of an image's maps are finite.
    """
    if tl is None or not maps.is_cuda:
        return to_bytes_reference(maps, highs)
    with on_device(maps.device):
        return launch_to_bytes(maps, highs)
