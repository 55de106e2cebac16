"""Pool gradients over the layer grid into channel weights, up to 16 layers in one launch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from combicam.kernels.jit import LaunchPlan, cdiv, jit, next_power_of_2, tl
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
    TILE_CHUNK,
    TILE_K,
    TILE_P,
    Layer,
    slots,
)
from combicam.kernels.principal import GRADIENT_FREE

POOLED = ("gradcam", "gradcam++", "xgradcam")


def pool_reference(
    acts: Tensor, grads: Tensor, method: str, eps: float, scale: Tensor | None = None
) -> Tensor:
    """The weights of channels: float32 [B,C,h,w], [B,K,C,h,w] -> [B,K,C].

    Formulas in :func:`~combicam.kernels.weigh.weigh_reference`; ``method`` is one of ``POOLED``.

    With G = f g, where f [B,K] is ``scale``, all are divided by :func:`~map_scale`, in which f
    cancels except for ``gradcam++``: there a = g^2 / (c (2 g^2 + f g^3 sum(A)) + e) with
    c = min(1, f^2 / eps) and e = min(1, eps / f^2), which does not underflow.
    """
    if method == "gradcam":
        return grads.mean((-2, -1))
    total = acts.sum((-2, -1))[:, None]  # [B,1,C]
    if method == "xgradcam":
        return (grads * acts[:, None]).sum((-2, -1)) / (total + eps)
    square = grads * grads
    third = square * grads * total[..., None, None]
    if scale is None or eps == 0:
        factor = 1.0 if scale is None else scale[..., None, None, None]
        alpha = square / (2 * square + factor * third + eps)
    else:
        f = scale[..., None, None, None]
        share, rest = (f * f / eps).clamp_max(1), (eps / (f * f)).clamp_max(1)
        alpha = square / (share * (2 * square + f * third) + rest)
    alpha = torch.where(grads != 0, alpha, torch.zeros_like(alpha))
    return (alpha * grads.relu()).sum((-2, -1))


def map_scale(scale: Tensor, method: str, eps: float) -> Tensor:
    """By what the maps of f g exceed those that are computed from g and f: float32 [B,K]."""
    if method in (*GRADIENT_FREE, "fullgrad"):
        return torch.ones_like(scale)
    if method != "gradcam++" or eps == 0:
        return scale
    return scale * (scale * scale / eps).clamp_max(1)


@dataclass(frozen=True)
class PoolTile:
    """The work of one program: ``block_c`` channels over ``chunk`` pixels, for ``targets`` targets.

    With chunks a single image fills a device; their partial sums are added up by every program of
    the next kernel, so there are at most four.
    """

    targets: int
    block_c: int
    block_p: int
    chunk: int

    def chunks(self, layer: Layer) -> int:
        """Partial sums per channel."""
        return cdiv(layer.pixels, self.chunk)

    def programs(self, layer: Layer, targets: int) -> int:
        """Programs per image."""
        return (
            cdiv(targets, self.targets)
            * cdiv(layer.channels, self.block_c)
            * cdiv(layer.pixels, self.chunk)
        )


def pool_tile(layer: Layer, targets: int, method: str) -> PoolTile:
    """Choose blocks that read 16 bytes per thread along the contiguous dimension.

    Args:
        layer: to read.
        targets: K.
        method: ``gradcam++`` needs sum(A) over the whole grid first, so it has one chunk.
    """
    # Of a block, over all its targets; a program reads about eight of them in turn. gradcam++
    # keeps sum(A) beside the block and its sums: with 4096 they need more than 64 registers a
    # thread, and ptxas spills some rather than run fewer programs at a time.
    elements = 2048 if method == "gradcam++" else 4096
    together = min(next_power_of_2(targets), 8)
    block = max(elements // together, 512)
    if layer.grad_strides[2] == 1:  # channels-last
        block_c = min(next_power_of_2(layer.channels), 64)
        block_p = min(next_power_of_2(layer.pixels), block // block_c)
    else:
        block_p = min(next_power_of_2(layer.pixels), 256)
        block_c = min(next_power_of_2(layer.channels), block // block_p)
    parts = 1 if method == "gradcam++" else min(4, cdiv(layer.pixels * block_c, 8 * block))
    return PoolTile(together, block_c, block_p, cdiv(cdiv(layer.pixels, parts), block_p) * block_p)


@jit
def _pool_block(
    a_ptr,
    g_ptr,
    part_ptr,  # float32 [B, chunks, rows, C]; rows are K sums, and for xgradcam the sum of A
    scale_ptr,  # float32 [B, K]; read where SCALED
    pid,  # of this layer
    K: tl.constexpr,
    METHOD: tl.constexpr,
    EPS: tl.constexpr,
    SCALED: tl.constexpr,
    LAYERS: tl.constexpr,
    TILES: tl.constexpr,
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
    CHUNK: tl.constexpr = TILES[SLOT][TILE_CHUNK]
    N_K: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    N_C: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    N_CHUNK: tl.constexpr = (P + CHUNK - 1) // CHUNK
    ROWS: tl.constexpr = K + 1 if METHOD == "xgradcam" else K

    i_k = pid % N_K
    i_c = pid // N_K % N_C
    i_chunk = pid // (N_K * N_C) % N_CHUNK
    i_b = (pid // (N_K * N_C * N_CHUNK)).to(tl.int64)

    o_k = i_k * BLOCK_K + tl.arange(0, BLOCK_K)
    o_c = i_c * BLOCK_C + tl.arange(0, BLOCK_C)
    m_k = (o_k < K)[:, None, None]
    m_c = (o_c < C)[None, :, None]
    a_row = a_ptr + i_b * A_B + (o_c * A_C)[None, :, None]  # [1, BLOCK_C, 1]
    g_row = g_ptr + i_b * G_B + (o_k.to(tl.int64) * G_K)[:, None, None]
    g_row += (o_c * G_C)[None, :, None]  # [BLOCK_K, BLOCK_C, 1]

    if METHOD == "gradcam++":
        total = tl.zeros([1, BLOCK_C, BLOCK_P], tl.float32)
        for p in range(0, CHUNK, BLOCK_P):
            o_p = (p + tl.arange(0, BLOCK_P))[None, None, :]
            total += tl.load(a_row + o_p * A_P, mask=m_c & (o_p < P), other=0).to(tl.float32)
        total = tl.sum(total, 2, keep_dims=True)  # [1, BLOCK_C, 1]
        if SCALED:
            o_f = i_b * K + o_k
            factor = tl.load(scale_ptr + o_f, mask=o_k < K, other=1)[:, None, None]
            total = factor * total  # [BLOCK_K, BLOCK_C, 1]
            share, rest = 1.0, EPS
            if EPS > 0:
                share = tl.minimum(factor * factor / EPS, 1.0)  # [BLOCK_K, 1, 1]
                rest = tl.minimum(EPS / (factor * factor), 1.0)

    acc = tl.zeros([BLOCK_K, BLOCK_C, BLOCK_P], tl.float32)
    acc_a = tl.zeros([1, BLOCK_C, BLOCK_P], tl.float32)
    for p in range(0, CHUNK, BLOCK_P):
        o_p = (i_chunk * CHUNK + p + tl.arange(0, BLOCK_P))[None, None, :]
        m_p = o_p < P
        b_g = tl.load(g_row + o_p * G_P, mask=m_k & m_c & m_p, other=0).to(tl.float32)
        if METHOD == "gradcam":
            acc += b_g
        if METHOD == "xgradcam":
            b_a = tl.load(a_row + o_p * A_P, mask=m_c & m_p, other=0).to(tl.float32)
            acc += b_g * b_a
            acc_a += b_a
        if METHOD == "gradcam++":
            square = b_g * b_g
            if SCALED:
                alpha = square / (share * (2 * square + square * b_g * total) + rest)
            else:
                alpha = square / (2 * square + square * b_g * total + EPS)
            positive = tl.maximum(b_g, 0.0, propagate_nan=tl.PropagateNan.ALL)
            acc += tl.where(b_g != 0, alpha * positive, 0.0)

    part = part_ptr + (i_b * N_CHUNK + i_chunk) * (ROWS * C)
    o_out = o_k[:, None] * C + o_c[None, :]  # [BLOCK_K, BLOCK_C]
    m_out = (o_k < K)[:, None] & (o_c < C)[None, :]
    tl.store(part + o_out, tl.sum(acc, 2), mask=m_out)
    if METHOD == "xgradcam":
        m_a = o_c < tl.where(i_k == 0, C, 0)
        tl.store(part + K * C + o_c, tl.sum(tl.sum(acc_a, 2), 0), mask=m_a)


@jit(do_not_specialize=("B",))
def pool_kernel(
    part_ptr,
    g0, g1, g2, g3, g4, g5, g6, g7,
    g8, g9, g10, g11, g12, g13, g14, g15,
    a0, a1, a2, a3, a4, a5, a6, a7,
    a8, a9, a10, a11, a12, a13, a14, a15,
    scale_ptr,
    B,
    K: tl.constexpr,
    METHOD: tl.constexpr,
    LAYERS: tl.constexpr,  # per slot, Layer.arguments()
    TILES: tl.constexpr,  # per slot TILE_K, TILE_C, TILE_P, TILE_CHUNK
    ENDS: tl.constexpr,  # per slot, programs per image of all slots up to it
    PARTS: tl.constexpr,  # per slot, where its partial sums begin, per image
    EPS: tl.constexpr,
    SCALED: tl.constexpr,
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
            _pool_block(
                acts[i], grads[i], part, scale_ptr, pid - start,
                K, METHOD, EPS, SCALED, LAYERS, TILES, i,
            )  # fmt: skip


def partial_rows(targets: int, method: str) -> int:
    """Rows of a chunk's partial sums: one per target, and for xgradcam the sum of A."""
    return targets + (method == "xgradcam")


def plan_pool(
    layers: Sequence[Layer],
    tiles: Sequence[PoolTile],
    offsets: Sequence[int],
    targets: int,
    method: str,
    eps: float,
    scaled: bool,
) -> LaunchPlan:
    """Plan a launch, by images, for up to ``SLOTS`` layers.

    Args:
        layers, tiles, offsets: per layer; its partial sums start at element B * offset.
        targets: K.
        method, eps: see :func:`pool_reference`.
        scaled: whether a scale is read, as by ``gradcam++``.
    """
    assert len(layers) <= SLOTS
    ends = list(accumulate(t.programs(x, targets) for x, t in zip(layers, tiles, strict=True)))
    constants = {
        "K": targets,
        "METHOD": method,
        "LAYERS": tuple(layer.arguments() for layer in layers),
        "TILES": tuple((t.targets, t.block_c, t.block_p, t.chunk) for t in tiles),
        "ENDS": tuple(ends),
        "PARTS": tuple(offsets),
        "EPS": eps,
        "SCALED": scaled,
    }
    return LaunchPlan(ends[-1], constants, pointers=2 + 2 * SLOTS)


def pool_tensors(
    parts: Tensor,
    acts: Sequence[Tensor],
    grads: Sequence[Tensor],
    plan: LaunchPlan,
    scale: Tensor | None = None,
) -> list[Tensor]:
    """What the kernel takes for up to ``SLOTS`` layers.

    Args:
        parts: float32, the output.
        acts: per layer [B,C,h,w], addressable.
        grads: per layer [B,K,C,h,w], addressable.
        plan: of :func:`plan_pool` for these layers.
        scale: see :func:`pool_reference`.
    """
    tensors = [parts, *slots(grads, parts)]
    if plan.constants["METHOD"] == "gradcam":
        return tensors
    factor = [] if scale is None or not plan.constants["SCALED"] else [scale.contiguous()]
    return [*tensors, *slots(acts, parts), *factor]
