"""Find the minimum and maximum of maps at image size without storing them at that size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from combicam.kernels.jit import (
    LaunchPlan,
    cdiv,
    fields,
    jit,
    launch,
    next_power_of_2,
    tl,
    wrap_triton,
)
from combicam.kernels.upsample import step, upsampled

# Relative range of an upsampled constant map in float32: a few roundings.
FLAT = 1e-6
BLOCK = 1024  # pixels of one program
# Fields of an item's grid; of the item itself the first two.
HEIGHT, WIDTH, OFFSET, STEP_Y, STEP_X, SAME = fields(6)


def is_flat(ranges: Tensor) -> Tensor:
    """Whether a map is constant to float32's rounding: [..., 2] (min, max) -> bool [...].

    NaN is not flat.
    """
    low, high = ranges[..., 0], ranges[..., 1]
    return high - low <= FLAT * torch.maximum(low.abs(), high.abs())


def min_max(x: Tensor, eps: float = 0.0, hide: bool = True) -> tuple[Tensor, Tensor]:
    """(x - min) / (max - min + eps) over the last two dimensions; a flat map gives zeros.

    Args:
        x: float32 [..., H, W].
        eps: added to the divisor, as some libraries do.
        hide: a map that is not finite gives zeros, too, so that only its range shows it; else NaN.

    Returns:
        The normalised maps, and float32 [..., 2] with min and max before.
    """
    low, high = x.amin((-2, -1), keepdim=True), x.amax((-2, -1), keepdim=True)
    ranges = torch.cat([low, high], -1)
    span = high - low
    varied = (span > FLAT * torch.maximum(low.abs(), high.abs())) & (span < torch.inf)  # not NaN
    scaled = (x - low) / (torch.where(varied, span, torch.ones_like(span)) + eps)
    scaled = torch.where(varied, scaled, torch.zeros_like(scaled) if hide else 0 * low + 0 * high)
    return scaled, ranges.squeeze(-2)


@dataclass(frozen=True)
class Grid:
    """The grid of a map: h, w, and the offset of its layer in the buffer, per map."""

    height: int
    width: int
    offset: int

    @property
    def pixels(self) -> int:
        """h w."""
        return self.height * self.width


@dataclass(frozen=True)
class Item:
    """The grids that are fused into one map of (H, W) pixels."""

    size: tuple[int, int]
    grids: tuple[Grid, ...]

    @property
    def tiles(self) -> int:
        """Programs per map."""
        return cdiv(self.size[0] * self.size[1], BLOCK)

    def arguments(self, align_corners: bool) -> list[tuple[float, ...]]:
        """Its grids as kernels take them; they name the fields ``HEIGHT`` and so on."""
        rows: list[tuple[float, ...]] = []
        for grid in self.grids:
            shape = (grid.height, grid.width)
            steps = [step(g, n, align_corners) for g, n in zip(shape, self.size, strict=True)]
            rows.append((*shape, grid.offset, *steps, shape == self.size))
        return rows


@jit
def low_and_high(value, mask):
    """Minimum and maximum where ``mask``; NaN if any of them is."""
    nan = tl.max(tl.where(mask & (value != value), 1, 0), 0) > 0
    low = tl.min(tl.where(mask, value, float("inf")), 0)
    high = tl.max(tl.where(mask, value, float("-inf")), 0)
    return tl.where(nan, float("nan"), low), tl.where(nan, float("nan"), high)


@jit
def whole_range(partial_ptr, i_map, T: tl.constexpr, T_BLOCK: tl.constexpr):
    """Minimum and maximum of a map from those of its tiles."""
    o_t = tl.arange(0, T_BLOCK)
    m_t = o_t < T
    partial = partial_ptr + i_map * (2 * T)
    low, _ = low_and_high(tl.load(partial + o_t, mask=m_t, other=0), m_t)
    _, high = low_and_high(tl.load(partial + T + o_t, mask=m_t, other=0), m_t)
    return low, high


@jit
def scaled(value, low, high, EPS: tl.constexpr, HIDE: tl.constexpr):
    """(value - low) / (high - low + EPS); 0 where the map is flat, or not finite and HIDE."""
    span = high - low
    size = tl.maximum(tl.abs(low), tl.abs(high))
    varied = (span > 1e-6 * size) & (span < float("inf"))  # FLAT; neither holds for NaN
    unit = tl.div_rn(value - low, tl.where(varied, span, 1.0) + EPS)
    return tl.where(varied, unit, 0.0 if HIDE else 0 * low + 0 * high)


@jit
def fused(
    maps_ptr,  # float32, per grid [N, h, w]
    sum_ptr,  # float32 [N, 2, T], of the sum that FUSE "gated" scales; else not read
    gate_ptr,  # float32 [N, 2, T], of its gate
    N,
    i_n,
    o_xy,  # int32 [BLOCK], pixels
    m_xy,
    T: tl.constexpr,
    T_BLOCK: tl.constexpr,
    FUSE: tl.constexpr,
    ALIGN: tl.constexpr,
    COUNT: tl.constexpr,
    EPS: tl.constexpr,
    ITEMS: tl.constexpr,  # H, W
    GRIDS: tl.constexpr,  # Item.arguments(), of all items
    ITEM: tl.constexpr,
):
    """fuse_l(U(M_l)) of map i_n at pixels o_xy; ``mean`` divides by COUNT.

    ``gated``: the last grid, min-max scaled, times the sum of those before it, min-max scaled.
    """
    EACH: tl.constexpr = len(GRIDS) // len(ITEMS)
    FIRST: tl.constexpr = ITEM * EACH
    y = o_xy // ITEMS[ITEM][WIDTH]
    x = o_xy % ITEMS[ITEM][WIDTH]
    total = tl.zeros(o_xy.shape, tl.float32)
    for i in tl.static_range(FIRST, FIRST + EACH):
        one = maps_ptr + tl.full([], GRIDS[i][OFFSET], tl.int64) * N
        one += i_n * (GRIDS[i][HEIGHT] * GRIDS[i][WIDTH])
        value = upsampled(
            one, y, x, m_xy, GRIDS[i][HEIGHT], GRIDS[i][WIDTH],
            GRIDS[i][STEP_Y], GRIDS[i][STEP_X], GRIDS[i][SAME], ALIGN,
        )  # fmt: skip
        if i == FIRST:
            total = value
        elif FUSE == "max":
            total = tl.maximum(total, value, propagate_nan=tl.PropagateNan.ALL)
        elif FUSE == "product":
            total = total * value
        elif FUSE == "gated" and i == FIRST + EACH - 1:
            low, high = whole_range(sum_ptr, i_n, T, T_BLOCK)
            total = scaled(total, low, high, EPS, False)
            low, high = whole_range(gate_ptr, i_n, T, T_BLOCK)
            total = total * scaled(value, low, high, EPS, False)
        else:
            total += value
    if FUSE == "mean":
        total = total / COUNT
    return total


@jit(do_not_specialize=("N",))
def extremes_kernel(
    maps_ptr,
    sum_ptr,
    gate_ptr,
    partial_ptr,  # float32 [N, items, 2, T]
    N,
    T: tl.constexpr,  # tiles of the largest item
    T_BLOCK: tl.constexpr,
    FUSE: tl.constexpr,
    ALIGN: tl.constexpr,
    COUNT: tl.constexpr,
    EPS: tl.constexpr,
    BLOCK: tl.constexpr,
    ITEMS: tl.constexpr,
    GRIDS: tl.constexpr,
):
    """One program per tile of an item of a map."""
    pid = tl.program_id(0)
    i_t = pid % T
    i_item = pid // T % len(ITEMS)
    i_n = (pid // (T * len(ITEMS))).to(tl.int64)
    o_xy = i_t * BLOCK + tl.arange(0, BLOCK)
    for i in tl.static_range(len(ITEMS)):
        if i_item == i:
            m_xy = o_xy < ITEMS[i][HEIGHT] * ITEMS[i][WIDTH]
            value = fused(
                maps_ptr, sum_ptr, gate_ptr, N, i_n, o_xy, m_xy,
                T, T_BLOCK, FUSE, ALIGN, COUNT, EPS, ITEMS, GRIDS, i,
            )  # fmt: skip
            low, high = low_and_high(value, m_xy)
            partial = partial_ptr + (i_n * len(ITEMS) + i) * (2 * T) + i_t
            tl.store(partial, low)
            tl.store(partial + T, high)


def plan_extremes(
    items: Sequence[Item],
    fuse: str = "sum",
    layers: int = 1,
    align_corners: bool = True,
    eps: float = 0.0,
) -> LaunchPlan:
    """Plan a launch, by maps per grid.

    Args:
        items: the maps to fuse, with equally many grids each.
        fuse, layers, align_corners, eps: see :func:`fused`; ``layers`` is its COUNT.
    """
    tiles = max(item.tiles for item in items)
    constants = {
        "T": tiles,
        "T_BLOCK": next_power_of_2(tiles),
        "FUSE": fuse,
        "ALIGN": align_corners,
        "COUNT": layers,
        "EPS": eps,
        "BLOCK": BLOCK,
        "ITEMS": tuple(item.size for item in items),
        "GRIDS": tuple(grid for item in items for grid in item.arguments(align_corners)),
    }
    return LaunchPlan(len(items) * tiles, constants)


def launch_extremes(
    maps: Tensor, count: int, plan: LaunchPlan, factors: Sequence[Tensor] = ()
) -> Tensor:
    """Minimum and maximum per tile of ``BLOCK`` pixels.

    Args:
        maps: float32, the buffer of the items' grids.
        count: N, maps per grid.
        plan: of :func:`plan_extremes`.
        factors: of ``gated``, what this function returned of the sum and of the gate; else any
            two tensors, or none.

    Returns:
        float32 [N, items, 2, T], T tiles; an item with fewer repeats its extremes as
        (inf, -inf).
    """
    tiles = plan.constants["T"]
    partial = maps.new_empty(count, plan.programs // tiles, 2, tiles)
    tensors = (maps, *(factors or (maps, maps)), partial)
    launch(wrap_triton(extremes_kernel), plan, count, tensors, count)
    return partial
