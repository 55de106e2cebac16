"""Fuse layer maps of any resolution into one heatmap at image size.

On a GPU only the result is stored at image size: one launch finds the extremes of the fused map, a
second computes it again, normalises, rounds and writes it. Operations on the layers' own grids
(adding maps of equal resolution, per-layer min-max, weights) are a small launch before them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

import torch
from torch import Tensor

from combicam.kernels.extremes import (
    BLOCK,
    HEIGHT,
    WIDTH,
    Grid,
    Item,
    fused,
    launch_extremes,
    min_max,
    plan_extremes,
    scaled,
    whole_range,
)
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
from combicam.kernels.layout import ints
from combicam.kernels.to_bytes import in_bytes, rounded
from combicam.kernels.upsample import upsample

FUSES = ("sum", "mean", "max", "product", "gated", "none")
LINEAR = ("sum", "mean", "gated")  # add layers before anything else
NORMALIZES = ("map", "layer", "layer+map", "grid", "grid+map", "none")
DTYPES = (torch.float32, torch.float16, torch.uint8)
# Fields of a group of layers: its programs (from, to), P, offset, members (from, to).
START, END, GROUP_PIXELS, GROUP_OFFSET, FIRST, LAST = fields(6)
# Fields of a member of a group.
LAYER, LAYER_OFFSET, WEIGHT = fields(3)


def _per_layer(normalize: str) -> str:
    """Where layers are normalised one by one: ``layer``, ``grid`` or ``none``."""
    return normalize.removesuffix("+map") if normalize not in ("map", "none") else "none"


def _at_image_size(
    maps: Sequence[Tensor], size: Sequence[int], per_layer: str, align_corners: bool, eps: float
) -> list[Tensor]:
    if per_layer == "grid":
        maps = [min_max(m, eps, hide=False)[0] for m in maps]
    full = [upsample(m, size, align_corners) for m in maps]
    return [min_max(m, eps, hide=False)[0] for m in full] if per_layer == "layer" else full


def _sum_by_resolution(maps: Sequence[Tensor]) -> list[Tensor]:
    """Add maps of the same resolution, which is possible because upsampling is linear."""
    sums: dict[tuple[int, int], Tensor] = {}
    for m in maps:
        key = (int(m.shape[-2]), int(m.shape[-1]))  # a grid is never symbolic
        sums[key] = sums[key] + m if key in sums else m
    return list(sums.values())


def _fuse(maps: Sequence[Tensor], fuse: str) -> Tensor:
    total = maps[0]
    for m in maps[1:]:
        if fuse == "max":
            total = torch.maximum(total, m)
        else:
            total = total * m if fuse == "product" else total + m
    return total


def combine_reference(
    maps: Sequence[Tensor],
    size: Sequence[int],
    fuse: str = "sum",
    normalize: str = "map",
    align_corners: bool = True,
    eps: float = 0.0,
    layer_weights: Sequence[float] = (),
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """heatmap = minmax(fuse_l(w_l U(M_l))), with U the bilinear upsampling to ``size``.

    ``gated`` lets the last layer say where and all layers what: minmax(U(M_L)) minmax(sum_l w_l
    U(M_l)), zero where the last layer's map is least.

    Args:
        maps: per layer float32 [B,K,h,w]; h and w differ between layers.
        size: (H, W) of the heatmaps, pixels.
        fuse: one of ``FUSES``; ``none`` stacks the layers instead.
        normalize: where min-max is applied, one of ``NORMALIZES``: the fused ``map``, every
            ``layer`` at image size, every layer on its own ``grid``, or two of them.
        align_corners: of the upsampling.
        eps: added to every min-max divisor.
        layer_weights: one factor per layer, applied after a per-layer min-max; empty for 1.
        dtype: of the heatmaps, one of ``DTYPES``; uint8 is 255 times the map.

    Returns:
        heatmaps [B,K,H,W] ([B,K,L,H,W] for ``fuse="none"``) and ranges float32 [B,K,2]
        ([B,K,L,2]): min and max of the fused maps before the last normalisation.
    """
    per_layer = _per_layer(normalize)
    weighted = list(maps)
    if layer_weights and per_layer == "none":
        weighted = [m * w for m, w in zip(maps, layer_weights, strict=True)]
    if fuse in LINEAR and per_layer == "none":
        full = [upsample(m, size, align_corners) for m in _sum_by_resolution(weighted)]
    else:
        full = _at_image_size(weighted, size, per_layer, align_corners, eps)
    unweighted = full
    if layer_weights and per_layer != "none":
        full = [m * w for m, w in zip(full, layer_weights, strict=True)]
    total = torch.stack(full, 2) if fuse == "none" else _fuse(full, fuse)
    if fuse == "mean":
        total = total / len(maps)
    if fuse == "gated":
        gate = unweighted[-1]
        if per_layer == "none":  # there they are weighted, and added, on their grids
            gate = upsample(maps[-1], size, align_corners)
        total = min_max(total, eps, hide=False)[0] * min_max(gate, eps, hide=False)[0]
    normalized, ranges = min_max(total, eps)
    heatmaps = normalized if normalize.endswith("map") else total
    return rounded(heatmaps) if dtype == torch.uint8 else heatmaps.to(dtype), ranges


@jit
def _added(
    maps_ptr,
    partial_ptr,
    N,
    i_n,
    o_p,  # int32 [BLOCK], cells of the grid
    m_p,
    NORMALIZED: tl.constexpr,
    T: tl.constexpr,
    T_BLOCK: tl.constexpr,
    EPS: tl.constexpr,
    LAYERS: tl.constexpr,
    GROUPS: tl.constexpr,
    MEMBERS: tl.constexpr,
    GROUP: tl.constexpr,
    FROM: tl.constexpr,  # its FIRST and LAST: Triton 3.6 counts from no element of a tuple
    TO: tl.constexpr,
):
    """sum_l w_l (M_l - low_l) / span_l over the layers of a group."""
    total = tl.zeros(o_p.shape, tl.float32)
    for i in tl.static_range(FROM, TO):
        one = maps_ptr + tl.full([], MEMBERS[i][LAYER_OFFSET], tl.int64) * N
        value = tl.load(one + i_n * GROUPS[GROUP][GROUP_PIXELS] + o_p, mask=m_p, other=0)
        if NORMALIZED:
            i_layer = i_n * LAYERS + MEMBERS[i][LAYER]
            low, high = whole_range(partial_ptr, i_layer, T, T_BLOCK)
            value = scaled(value, low, high, EPS, False)
        total += value * MEMBERS[i][WEIGHT]
    return total


@jit(do_not_specialize=("N",))
def condense_kernel(
    maps_ptr,
    partial_ptr,  # float32 [N, layers, 2, T]; read where NORMALIZED
    out_ptr,
    N,
    PROGRAMS: tl.constexpr,  # per map
    NORMALIZED: tl.constexpr,
    T: tl.constexpr,
    T_BLOCK: tl.constexpr,
    EPS: tl.constexpr,
    BLOCK: tl.constexpr,
    LAYERS: tl.constexpr,
    GROUPS: tl.constexpr,  # START to LAST
    MEMBERS: tl.constexpr,  # LAYER to WEIGHT, of all groups
):
    """Reduce every group of layers to one map on their common grid."""
    pid = tl.program_id(0)
    i_n = (pid // PROGRAMS).to(tl.int64)
    i_program = pid % PROGRAMS
    for i in tl.static_range(len(GROUPS)):
        if (i_program >= GROUPS[i][START]) & (i_program < GROUPS[i][END]):
            o_p = (i_program - GROUPS[i][START]) * BLOCK + tl.arange(0, BLOCK)
            m_p = o_p < GROUPS[i][GROUP_PIXELS]
            total = _added(
                maps_ptr, partial_ptr, N, i_n, o_p, m_p,
                NORMALIZED, T, T_BLOCK, EPS, LAYERS, GROUPS, MEMBERS, i,
                GROUPS[i][FIRST], GROUPS[i][LAST],
            )  # fmt: skip
            out = out_ptr + tl.full([], GROUPS[i][GROUP_OFFSET], tl.int64) * N
            tl.store(out + i_n * GROUPS[i][GROUP_PIXELS] + o_p, total, mask=m_p)


@jit(do_not_specialize=("N",))
def render_kernel(
    maps_ptr,
    sum_ptr,
    gate_ptr,
    partial_ptr,  # float32 [N, items, 2, T]
    heatmaps_ptr,  # float32, float16 or uint8 [N, items, H, W]
    ranges_ptr,  # float32 [N, items, 2]
    N,
    T: tl.constexpr,
    T_BLOCK: tl.constexpr,
    FUSE: tl.constexpr,
    ALIGN: tl.constexpr,
    COUNT: tl.constexpr,
    EPS: tl.constexpr,
    BLOCK: tl.constexpr,
    ITEMS: tl.constexpr,
    GRIDS: tl.constexpr,
    SCALED: tl.constexpr,
):
    """Compute the fused maps again, normalise them and store them in the result's type."""
    pid = tl.program_id(0)
    i_t = pid % T
    i_map = (pid // T).to(tl.int64)
    i_n = i_map // len(ITEMS)
    low, high = whole_range(partial_ptr, i_map, T, T_BLOCK)
    o_xy = i_t * BLOCK + tl.arange(0, BLOCK)
    for i in tl.static_range(len(ITEMS)):
        if i_map % len(ITEMS) == i:
            m_xy = o_xy < ITEMS[i][HEIGHT] * ITEMS[i][WIDTH]
            value = fused(
                maps_ptr, sum_ptr, gate_ptr, N, i_n, o_xy, m_xy,
                T, T_BLOCK, FUSE, ALIGN, COUNT, EPS, ITEMS, GRIDS, i,
            )  # fmt: skip
            if SCALED:
                # Compiled twice, a map's extremes may differ by a rounding.
                value = tl.minimum(tl.maximum(scaled(value, low, high, EPS, True), 0.0), 1.0)
            if heatmaps_ptr.dtype.element_ty == tl.uint8:
                value = in_bytes(value)
            out = heatmaps_ptr + i_map * (ITEMS[i][HEIGHT] * ITEMS[i][WIDTH]) + o_xy
            tl.store(out, value.to(heatmaps_ptr.dtype.element_ty), mask=m_xy)
    if i_t == 0:
        tl.store(ranges_ptr + 2 * i_map, low)
        tl.store(ranges_ptr + 2 * i_map + 1, high)


# Layers that are added before they are upsampled: the place of each, and its weight.
Group = list[tuple[int, float]]


def _groups(grids: Sequence[Grid], fuse: str, weights: Sequence[float]) -> list[Group]:
    """Layers of one grid where adding comes first, else each alone; a gate alone, at the end."""
    groups: dict[tuple[int, ...], Group] = {}
    for i, (grid, weight) in enumerate(zip(grids, weights, strict=True)):
        key = (grid.height, grid.width) if fuse in LINEAR else (i,)
        groups.setdefault(key, []).append((i, float(weight)))
    gate: list[Group] = [[(len(grids) - 1, 1.0)]] if fuse == "gated" else []
    return [*groups.values(), *gate]


def _plan_condense(
    grids: Sequence[Grid], groups: Sequence[Group], partial: LaunchPlan | None, eps: float
) -> tuple[LaunchPlan, list[Grid]]:
    """Every group of layers as one map: the launch, and where these lie in its buffer."""
    condensed: list[Grid] = []
    arguments: list[tuple[int, ...]] = []
    members: list[tuple[float, ...]] = []
    pixels = programs = 0
    for group in groups:
        grid = grids[group[0][0]]
        end = programs + cdiv(grid.pixels, BLOCK)
        first = len(members)
        members += [(i, grids[i].offset, weight) for i, weight in group]
        arguments.append((programs, end, grid.pixels, pixels, first, len(members)))
        programs = end
        condensed.append(Grid(grid.height, grid.width, pixels))
        pixels += grid.pixels
    tiles = 1 if partial is None else partial.constants["T"]
    constants = {
        "PROGRAMS": programs,
        "NORMALIZED": partial is not None,
        "T": tiles,
        "T_BLOCK": next_power_of_2(tiles),
        "EPS": eps,
        "BLOCK": BLOCK,
        "LAYERS": len(grids),
        "GROUPS": tuple(arguments),
        "MEMBERS": tuple(members),
    }
    return LaunchPlan(programs, constants), condensed


@dataclass(frozen=True)
class _Plan:
    """All launches, by maps per grid, in the order in which they are made.

    Attributes:
        alone: extremes of every layer; None if layers are not normalised one by one.
        condense: None if layers are fused as they are; ``pixels`` is what it makes, per map.
        factors: of ``gated``, extremes of the sum and of the gate; else none.
        extremes, render: of the fused maps.
    """

    alone: LaunchPlan | None
    condense: LaunchPlan | None
    pixels: int
    factors: tuple[LaunchPlan, ...]
    extremes: LaunchPlan
    render: LaunchPlan


@lru_cache(256)
def _plan(
    grids: tuple[tuple[int, int], ...],
    size: tuple[int, int],
    fuse: str,
    normalize: str,
    align_corners: bool,
    eps: float,
    layer_weights: tuple[float, ...],
) -> _Plan:
    offsets = accumulate((h * w for h, w in grids), initial=0)
    places = [Grid(h, w, offset) for (h, w), offset in zip(grids, offsets, strict=False)]
    per_layer = _per_layer(normalize)
    alone = None
    if per_layer != "none":
        at = [(g.height, g.width) if per_layer == "grid" else size for g in places]
        items = [Item(s, (g,)) for s, g in zip(at, places, strict=True)]
        alone = plan_extremes(items, align_corners=align_corners)
    groups = _groups(places, fuse, layer_weights or [1.0] * len(grids))
    added = len(groups) - (fuse == "gated") < len(places)
    condense = None
    if alone is not None or layer_weights or added:
        condense, places = _plan_condense(places, groups, alone, eps)
    elif fuse == "gated":
        places.append(places[-1])
    items = [Item(size, (g,)) for g in places]
    if fuse != "none":
        items = [Item(size, tuple(places))]
    factors: tuple[LaunchPlan, ...] = ()
    if fuse == "gated":
        parts = tuple(places[:-1]), tuple(places[-1:])
        factors = tuple(plan_extremes([Item(size, g)], align_corners=align_corners) for g in parts)
    extremes = plan_extremes(items, fuse, len(grids), align_corners, eps)
    constants = {**extremes.constants, "SCALED": normalize.endswith("map")}
    render = LaunchPlan(extremes.programs, constants)
    pixels = sum(g.pixels for g in places)
    return _Plan(alone, condense, pixels, factors, extremes, render)


def launch_combine(
    maps: Tensor,
    shape: Sequence[int],
    grids: Sequence[Sequence[int]],
    size: Sequence[int],
    fuse: str = "sum",
    normalize: str = "map",
    align_corners: bool = True,
    eps: float = 0.0,
    layer_weights: Sequence[float] = (),
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Compute ``combine_reference`` of maps in one buffer, in two to six launches.

    Args:
        maps: float32 [sum of B K h w], layer after layer, each [B,K,h,w] contiguous.
        shape: (B, K).
        grids: per layer (h, w).
        size, fuse, normalize, align_corners, eps, layer_weights, dtype: see
            :func:`combine_reference`.

    Returns:
        As :func:`combine_reference`.
    """
    options = (fuse, normalize, align_corners, eps, tuple(layer_weights))
    plan = _plan(tuple(map(tuple, grids)), ints(size), *options)
    count = shape[0] * shape[1]
    partial = maps if plan.alone is None else launch_extremes(maps, count, plan.alone)
    if plan.condense is not None:
        condensed = maps.new_empty(count * plan.pixels)
        launch(
            wrap_triton(condense_kernel), plan.condense, count, (maps, partial, condensed), count
        )
        maps = condensed
    factors = [launch_extremes(maps, count, factor) for factor in plan.factors] or [maps, maps]
    partial = launch_extremes(maps, count, plan.extremes, factors)
    lead = [*shape, *([len(grids)] if fuse == "none" else [])]
    heatmaps = maps.new_empty([*lead, *size], dtype=dtype)
    ranges = maps.new_empty([*lead, 2])
    tensors = (maps, *factors, partial, heatmaps, ranges)
    launch(wrap_triton(render_kernel), plan.render, count, tensors, count)
    return heatmaps, ranges
