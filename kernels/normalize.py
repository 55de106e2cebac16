"""Turn uint8 images into a model's input in one pass: ``combicam::normalize``."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache

import torch
from torch import Tensor

from combicam.kernels.jit import LaunchPlan, cdiv, jit, launch, on_device, tl, wrap_triton

BLOCK = 4096  # bytes of one program: 16 for each of 256 threads
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def normalize_reference(
    images: Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype
) -> Tensor:
    """(x / 255 - mean) / std in float32, then ``dtype``: uint8 [B,H,W,C] -> [B,C,H,W]."""
    offset = torch.tensor(mean, device=images.device)
    scale = torch.tensor(std, device=images.device)
    return ((images.float() / 255 - offset) / scale).to(dtype).permute(0, 3, 1, 2)


@jit
def normalize_kernel(
    images_ptr,  # uint8 [n], n = B H W C, C = 3, or 1 with three equal scales and shifts
    out_ptr,  # [n], in the same order
    n,
    SCALE_R: tl.constexpr,
    SCALE_G: tl.constexpr,
    SCALE_B: tl.constexpr,
    SHIFT_R: tl.constexpr,
    SHIFT_G: tl.constexpr,
    SHIFT_B: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """x * scale + shift of each value's channel, which is its index modulo 3."""
    i_start = tl.program_id(0).to(tl.int64) * BLOCK
    o_x = tl.arange(0, BLOCK)
    m_x = o_x < n - i_start
    b_x = tl.load(images_ptr + i_start + o_x, mask=m_x, other=0).to(tl.float32)  # [BLOCK]
    channel = (o_x + (i_start % 3).to(tl.int32)) % 3
    scale = tl.where(channel == 0, SCALE_R, tl.where(channel == 1, SCALE_G, SCALE_B))
    shift = tl.where(channel == 0, SHIFT_R, tl.where(channel == 1, SHIFT_G, SHIFT_B))
    tl.store(out_ptr + i_start + o_x, b_x * scale + shift, mask=m_x)


def launch_normalize(
    images: Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype
) -> Tensor:
    """Launch the kernel, of 1 or 3 channels: :func:`normalize_reference` to float32's rounding."""
    images = images.contiguous()
    out = torch.empty_like(images, dtype=dtype)
    n = images.numel()
    plan = _plan(tuple(mean), tuple(std))
    launch(wrap_triton(normalize_kernel), plan, cdiv(n, BLOCK), (images, out), n)
    return out.permute(0, 3, 1, 2)


@lru_cache(256)
def _plan(mean: tuple[float, ...], std: tuple[float, ...]) -> LaunchPlan:
    """Counted by blocks of bytes."""
    repeats = 3 // len(mean)  # whichever of three channels a grey value is taken for
    scale = [1 / (255 * s) for s in std] * repeats
    shift = [-m / s for m, s in zip(mean, std, strict=True)] * repeats
    names = [f"{kind}_{channel}" for kind in ("SCALE", "SHIFT") for channel in "RGB"]
    constants = dict(zip(names, [*scale, *shift], strict=True))
    return LaunchPlan(1, {**constants, "BLOCK": BLOCK}, num_warps=8)


def _normalize(images: Tensor, mean: list[float], std: list[float], dtype: torch.dtype) -> Tensor:
    if images.is_cuda and dtype in DTYPES and len(mean) in (1, 3):
        return launch_normalize(images, mean, std, dtype)
    return normalize_reference(images, mean, std, dtype)


@cache
def define() -> None:
    """Define ``combicam::normalize`` at its first use, since that imports torch's compiler."""
    torch.library.triton_op("combicam::normalize", _normalize, mutates_args=())


def normalize(
    images: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """(x / 255 - mean) / std.

    Args:
        images: uint8 [B,H,W,C]; RGB, grey, or others.
        mean, std: per channel, of values in [0, 1].
        dtype: of the result: float32, bfloat16 or float16.

    Returns:
        [B,C,H,W], channels-last in memory like the bytes, without a transposition.

    Raises:
        ValueError: not uint8 [B,H,W,C] with C values of mean and std.
    """
    count = len(mean)
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[-1] != count:
        raise ValueError(
            f"normalize: expected uint8 [B,H,W,{count}], got {images.dtype} "
            f"{tuple(images.shape)}; pass decoded images, or skip this for normalised float "
            f"[B,{count},H,W]"
        )
    if images.device.type == "cpu":
        return normalize_reference(images, mean, std, dtype)
    if not torch.compiler.is_compiling():
        define()
    with on_device(images.device):
        result: Tensor = torch.ops.combicam.normalize(images, list(mean), list(std), dtype)
    return result
