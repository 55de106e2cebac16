"""Weigh activations by their gradients into layer maps.

Up to 16 layers of a batch take two launches: :mod:`~combicam.kernels.pool` reads the gradients,
this module the activations. Both are split into programs of equal work, so that neither a single
image nor layers of different sizes leave a device idle, and every tensor is read once. Methods that
weigh pixel by pixel read both in one launch here. Methods made of matrix products have no kernel:
they run the reference, whose products the device's own library does best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

import torch
from torch import Tensor

from combicam.kernels.extremes import FLAT
from combicam.kernels.jit import LaunchPlan, cdiv, jit, launch, next_power_of_2, tl, wrap_triton
from combicam.kernels.layout import (
    ACTS_B,
    ACTS_C,
    ACTS_P,
    CHANNELS,
    GRADS_B,
    GRADS_C,
    GRADS_K,
    GRADS_P,
    PIXELS,
    SLOTS,
    TILE_C,
    TILE_K,
    TILE_P,
    Described,
    Layer,
    addressable,
    described,
    ints,
    is_addressable,
    layer_of,
    slots,
)
from combicam.kernels.pool import (
    POOLED,
    PoolTile,
    partial_rows,
    plan_pool,
    pool_kernel,
    pool_reference,
    pool_tensors,
    pool_tile,
)
from combicam.kernels.principal import EIGEN, principal_projection

EPS = 1e-8
METHODS = (*POOLED, "hirescam", "elementwise", "layercam", *EIGEN, "fullgrad")


def weigh_reference(
    acts: Tensor, grads: Tensor, method: str, eps: float = EPS, scale: Tensor | None = None
) -> Tensor:
    """One layer's class activation maps.

    With A = acts and G = grads (mean and sum without index run over the grid):

    * ``gradcam``: relu(sum_c mean(G_c) A_c)                                    (1610.02391)
    * ``gradcam++``: relu(sum_c w_c A_c), w_c = sum(a relu(G_c)),
      a = G^2 / (2 G^2 + G^3 sum(A_c) + eps) where G != 0, else 0               (1710.11063)
    * ``xgradcam``: relu(sum_c w_c A_c), w_c = sum(G_c A_c) / (sum(A_c) + eps)  (2008.02312)
    * ``hirescam``: relu(sum_c G_c A_c)                                         (2011.08891)
    * ``elementwise``: sum_c relu(G_c A_c)
    * ``layercam``: relu(sum_c relu(G_c) A_c)              (10.1109/TIP.2021.3089943)
    * ``eigencam``: relu of A's projection onto its first principal component, see
      :func:`~combicam.kernels.principal.principal_projection`; of G, only the shape is read
                                                                                (2008.00299)
    * ``eigengradcam``: likewise of G A
    * ``fullgrad``: sum_c minmax(abs(G_c A_c)), each channel on its own, with a layer's bias (or the
      image) for A                                                              (1905.00780)

    Args:
        acts: activations, [B,C,h,w], any float dtype.
        grads: gradients of the K scores with respect to ``acts``, [B,K,C,h,w].
        method: one of ``METHODS``.
        eps: of the two formulas that divide; of ``fullgrad``, added to every range.
        scale: float32 [B,K], positive: the gradients are ``scale`` times ``grads``, which are of
            a size that does not underflow. None for 1.

    Returns:
        float32 [B,K,h,w], never negative; with ``scale``, divided by
        :func:`~combicam.kernels.pool.map_scale`.
    """
    acts, grads = acts.float(), grads.float()
    if method in POOLED:  # one matrix product, so that w A is never materialised
        flat = torch.bmm(pool_reference(acts, grads, method, eps, scale), acts.flatten(2))
        return flat.unflatten(-1, acts.shape[-2:]).relu()
    if method == "hirescam":
        return (grads * acts[:, None]).sum(2).relu()
    if method == "elementwise":
        return (grads * acts[:, None]).relu().sum(2)
    if method == "layercam":
        return (grads.relu() * acts[:, None]).sum(2).relu()
    if method == "eigencam":
        alone = principal_projection(acts.flatten(2)).unflatten(-1, acts.shape[-2:]).relu()
        return alone[:, None].repeat(1, grads.shape[1], 1, 1)
    if method == "eigengradcam":
        products = (grads * acts[:, None]).flatten(3)  # [B,K,C,P]
        each = principal_projection(products.flatten(0, 1))  # [B K,P]
        return each.unflatten(0, grads.shape[:2]).unflatten(-1, acts.shape[-2:]).relu()
    if method == "fullgrad":
        return _channel_ranges((grads * acts[:, None]).abs(), eps, scale)
    raise ValueError(f"weigh: expected a method of {METHODS}, got {method!r}")


def _channel_ranges(x: Tensor, eps: float, scale: Tensor | None) -> Tensor:
    """sum_c (x_c - min) / (max - min + eps / scale) of [B,K,C,h,w]; 0 for a constant channel."""
    low, high = x.amin((-2, -1), keepdim=True), x.amax((-2, -1), keepdim=True)
    span = high - low
    varied = span > FLAT * high
    divisor = torch.where(varied, span, torch.ones_like(span))
    divisor = divisor + (eps if scale is None or not eps else (eps / scale)[..., None, None, None])
    return torch.where(varied, (x - low) / divisor, 0 * high).sum(2)  # what is not finite shows


@dataclass(frozen=True)
class WeighTile:
    """The work of one program: all channels of ``block_p`` pixels, for ``targets`` targets."""

    targets: int
    block_c: int
    block_p: int

    def programs(self, layer: Layer, targets: int) -> int:
        """Programs per image."""
        return cdiv(targets, self.targets) * cdiv(layer.pixels, self.block_p)


def weigh_tile(layer: Layer, targets: int, elements: int = 4096) -> WeighTile:
    """Choose blocks of ``elements`` over all targets; a program reads about four in turn."""
    together = min(next_power_of_2(targets), 8)
    block = max(elements // together, 512)
    channels_last = layer.act_strides[1] == 1
    wanted = next_power_of_2(4 * elements // layer.channels)
    block_p = max(min(wanted, 128, next_power_of_2(layer.pixels)), 8 if channels_last else 16)
    block_c = min(next_power_of_2(layer.channels), max(block // block_p, 1))
    return WeighTile(together, block_c, block_p)


@jit
def _weigh_block(
    a_ptr,
    g_ptr,
    part_ptr,  # float32 [B, chunks, rows, C]: see pool
    map_ptr,  # float32 [B, K, P]
    pid,  # of this layer
    K: tl.constexpr,
    METHOD: tl.constexpr,
    EPS: tl.constexpr,
    LAYERS: tl.constexpr,
    TILES: tl.constexpr,
    N_CHUNK: tl.constexpr,
    SLOT: tl.constexpr,
):
    C: tl.constexpr = LAYERS[SLOT][CHANNELS]
    P: tl.constexpr = LAYERS[SLOT][PIXELS]
    A_B: tl.constexpr = LAYERS[SLOT][ACTS_B]
    A_C: tl.constexpr = LAYERS[SLOT][ACTS_C]
    A_P: tl.constexpr = LAYERS[SLOT][ACTS_P]
    G_B: tl.constexpr = LAYERS[SLOT][GRADS_B]
    G_K: tl.constexpr = LAYERS[SLOT][GRADS_K]
    G_C: tl.constexpr = LAYERS[SLOT][GRADS_C]
    G_P: tl.constexpr = LAYERS[SLOT][GRADS_P]
    BLOCK_K: tl.constexpr = TILES[SLOT][TILE_K]
    BLOCK_C: tl.constexpr = TILES[SLOT][TILE_C]
    BLOCK_P: tl.constexpr = TILES[SLOT][TILE_P]
    N_K: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    N_P: tl.constexpr = (P + BLOCK_P - 1) // BLOCK_P
    ROWS: tl.constexpr = K + 1 if METHOD == "xgradcam" else K

    i_k = pid % N_K
    i_p = pid // N_K % N_P
    i_b = (pid // (N_K * N_P)).to(tl.int64)

    o_k = i_k * BLOCK_K + tl.arange(0, BLOCK_K)
    o_p = i_p * BLOCK_P + tl.arange(0, BLOCK_P)
    m_k = (o_k < K)[:, None]
    m_p = (o_p < P)[None, None, :]
    a_column = a_ptr + i_b * A_B + (o_p * A_P)[None, None, :]  # [1, 1, BLOCK_P]
    g_column = g_ptr + i_b * G_B + (o_k.to(tl.int64) * G_K)[:, None, None]
    g_column += (o_p * G_P)[None, None, :]  # [BLOCK_K, 1, BLOCK_P]
    part = part_ptr + i_b * (N_CHUNK * ROWS * C)

    acc = tl.zeros([BLOCK_K, BLOCK_C, BLOCK_P], tl.float32)
    for c in range(0, C, BLOCK_C):
        o_c = c + tl.arange(0, BLOCK_C)
        m_c = (o_c < C)[None, :]
        m_a = m_c[:, :, None] & m_p
        b_a = tl.load(a_column + (o_c * A_C)[None, :, None], mask=m_a, other=0)
        b_a = b_a.to(tl.float32)  # [1, BLOCK_C, BLOCK_P]
        if METHOD == "gradcam" or METHOD == "gradcam++" or METHOD == "xgradcam":
            weight = tl.zeros([BLOCK_K, BLOCK_C], tl.float32)
            total = tl.zeros([1, BLOCK_C], tl.float32)
            for chunk in tl.static_range(N_CHUNK):
                row = part + chunk * (ROWS * C) + o_c[None, :]
                weight += tl.load(row + o_k[:, None] * C, mask=m_k & m_c, other=0)
                if METHOD == "xgradcam":
                    total += tl.load(row + K * C, mask=m_c, other=0)
            if METHOD == "gradcam":
                weight = weight / P
            if METHOD == "xgradcam":
                weight = weight / tl.where(m_c, total + EPS, 1.0)
            acc += weight[:, :, None] * b_a
        else:
            m_g = m_k[:, :, None] & m_a
            b_g = tl.load(g_column + (o_c * G_C)[None, :, None], mask=m_g, other=0)
            b_g = b_g.to(tl.float32)  # [BLOCK_K, BLOCK_C, BLOCK_P]
            if METHOD == "layercam":
                b_g = tl.maximum(b_g, 0.0, propagate_nan=tl.PropagateNan.ALL)
            product = b_g * b_a
            if METHOD == "elementwise":
                product = tl.maximum(product, 0.0, propagate_nan=tl.PropagateNan.ALL)
            acc += product

    b_map = tl.maximum(tl.sum(acc, 1), 0.0, propagate_nan=tl.PropagateNan.ALL)  # [BLOCK_K, BLOCK_P]
    o_map = (i_b * K + o_k)[:, None] * P + o_p[None, :]
    tl.store(map_ptr + o_map, b_map, mask=m_k & (o_p < P)[None, :])


@jit(do_not_specialize=("B",))
def weigh_kernel(
    part_ptr,
    map_ptr,
    a0, a1, a2, a3, a4, a5, a6, a7,
    a8, a9, a10, a11, a12, a13, a14, a15,
    g0, g1, g2, g3, g4, g5, g6, g7,
    g8, g9, g10, g11, g12, g13, g14, g15,
    B,
    K: tl.constexpr,
    METHOD: tl.constexpr,
    LAYERS: tl.constexpr,  # per slot, Layer.arguments()
    TILES: tl.constexpr,  # per slot TILE_K, TILE_C, TILE_P
    ENDS: tl.constexpr,  # per slot, programs per image of all slots up to it
    PARTS: tl.constexpr,  # per slot, where its partial sums begin, per image
    CHUNKS: tl.constexpr,  # per slot, how many partial sums
    MAPS: tl.constexpr,  # per slot, where its maps begin, per image
    EPS: tl.constexpr,
):  # fmt: skip
    """Programs in the order of slots; each slot is specialised to its layer."""
    acts = (
        a0, a1, a2, a3, a4, a5, a6, a7,
        a8, a9, a10, a11, a12, a13, a14, a15,
    )  # fmt: skip
    grads = (
        g0, g1, g2, g3, g4, g5, g6, g7,
        g8, g9, g10, g11, g12, g13, g14, g15,
    )  # fmt: skip
    pid = tl.program_id(0)
    for i in tl.static_range(len(LAYERS)):
        start = B * (ENDS[i - 1] if i > 0 else 0)
        if (pid >= start) & (pid < B * ENDS[i]):
            part = part_ptr + tl.full([], PARTS[i], tl.int64) * B
            maps = map_ptr + tl.full([], MAPS[i], tl.int64) * B
            _weigh_block(
                acts[i], grads[i], part, maps, pid - start,
                K, METHOD, EPS, LAYERS, TILES, CHUNKS[i], i,
            )  # fmt: skip


@dataclass(frozen=True)
class _Work:
    """One layer's offsets in the buffers and its blocks."""

    layer: Layer
    pool: PoolTile
    weigh: WeighTile
    part: int
    maps: int


@dataclass(frozen=True)
class _Group:
    """Up to ``SLOTS`` layers, by their indices, and their launches."""

    layers: tuple[int, ...]
    pool: LaunchPlan
    weigh: LaunchPlan


@dataclass(frozen=True)
class _Plan:
    """All launches; how many partial sums and pixels of maps there are, per image; every (h, w)."""

    groups: tuple[_Group, ...]
    parts: int
    pixels: int
    grids: tuple[tuple[int, int], ...]


@lru_cache(256)
def _plan(layers: Described, targets: int, method: str, eps: float, scaled: bool) -> _Plan | None:
    """None if some pixels have no constant stride."""
    if not all(is_addressable(shape, x) for shape, *both in layers for x in both):
        return None
    work: list[_Work] = []
    part = pixels = 0
    for layer in (layer_of(*one) for one in layers):
        tile = pool_tile(layer, targets, method)
        work.append(_Work(layer, tile, weigh_tile(layer, targets), part, pixels * targets))
        part += tile.chunks(layer) * partial_rows(targets, method) * layer.channels
        pixels += layer.pixels
    groups = []
    # Largest programs first, so that the last ones of a launch are small.
    order = sorted(range(len(work)), key=lambda i: -work[i].layer.pixels * work[i].layer.channels)
    for first in range(0, len(order), SLOTS):
        some = tuple(order[first : first + SLOTS])
        group = [work[i] for i in some]
        ends = list(accumulate(w.weigh.programs(w.layer, targets) for w in group))
        offsets = tuple(w.part for w in group)
        constants = {
            "K": targets,
            "METHOD": method,
            "LAYERS": tuple(w.layer.arguments() for w in group),
            "TILES": tuple((w.weigh.targets, w.weigh.block_c, w.weigh.block_p) for w in group),
            "ENDS": tuple(ends),
            "PARTS": offsets,
            "CHUNKS": tuple(w.pool.chunks(w.layer) for w in group),
            "MAPS": tuple(w.maps for w in group),
            "EPS": eps,
        }
        group_layers, tiles = [w.layer for w in group], [w.pool for w in group]
        pool = plan_pool(group_layers, tiles, offsets, targets, method, eps, scaled)
        groups.append(_Group(some, pool, LaunchPlan(ends[-1], constants, pointers=2 + 2 * SLOTS)))
    grids = tuple((w.layer.height, w.layer.width) for w in work)
    return _Plan(tuple(groups), part, targets * pixels, grids)


def launch_weigh(
    acts: Sequence[Tensor],
    grads: Sequence[Tensor],
    method: str,
    eps: float = EPS,
    scale: Tensor | None = None,
) -> tuple[Tensor, Sequence[tuple[int, ...]]]:
    """Compute the maps of all layers into one buffer, ``SLOTS`` layers per launch.

    Args:
        acts: per layer [B,C,h,w], float32, bfloat16 or float16; NCHW, channels-last, or any
            strides.
        grads: per layer [B,K,C,h,w], with the same options.
        method, eps, scale: see :func:`weigh_reference`.

    Returns:
        float32 [sum of B K h w], layer after layer, each [B,K,h,w] contiguous; and every (h, w).
    """
    if method in (*EIGEN, "fullgrad"):
        each = [weigh_reference(a, g, method, eps, scale) for a, g in zip(acts, grads, strict=True)]
        return torch.cat([m.flatten() for m in each]), [ints(a.shape[2:]) for a in acts]
    batch, targets = grads[0].shape[:2]
    options = (int(targets), method, eps, scale is not None and method == "gradcam++")
    plan = _plan(described(acts, grads), *options)
    if plan is None:
        acts, grads = [addressable(a) for a in acts], [addressable(g) for g in grads]
        plan = _plan(described(acts, grads), *options)
    assert plan is not None
    maps = acts[0].new_empty(batch * plan.pixels, dtype=torch.float32)
    pooled = method in POOLED
    parts = maps.new_empty(batch * plan.parts if pooled else 1)
    pool, weigh = wrap_triton(pool_kernel), wrap_triton(weigh_kernel)
    for group in plan.groups:
        some_acts, some_grads = [acts[i] for i in group.layers], [grads[i] for i in group.layers]
        if pooled:
            tensors = pool_tensors(parts, some_acts, some_grads, group.pool, scale)
            launch(pool, group.pool, batch, tensors, batch)
        tensors = [parts, maps, *slots(some_acts, parts), *([] if pooled else some_grads)]
        launch(weigh, group.weigh, batch, tensors, batch)
    return maps, plan.grids
