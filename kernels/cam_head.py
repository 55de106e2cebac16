"""Turn all layers' activations and gradients into heatmaps: ``combicam::cam_head``.

On a GPU it runs Triton kernels, which Inductor and AOTInductor embed; on a CPU it runs the
reference, whose standard operators are also used in portable artifacts.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from combicam.kernels.combine import DTYPES, combine_reference, launch_combine
from combicam.kernels.jit import on_device
from combicam.kernels.pool import map_scale
from combicam.kernels.weigh import EPS, METHODS, launch_weigh, weigh_reference

KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Scales of maps are at least this, so that no range rounds to a constant.
LEAST_SCALE = 2.0**-100


def cam_head_reference(
    acts: Sequence[Tensor],
    grads: Sequence[Tensor],
    size: Sequence[int],
    method: str,
    fuse: str,
    normalize: str,
    align_corners: bool,
    eps: float,
    layer_weights: Sequence[float],
    method_eps: float = EPS,
    keep_layers: bool = True,
    dtype: torch.dtype = torch.float32,
    scale: Tensor | None = None,
) -> list[Tensor]:
    """The CAM head in standard torch operations, as contained in portable artifacts."""
    method_eps = eps if method == "fullgrad" else method_eps  # its divisors are those of min-max
    maps = [
        weigh_reference(a, g, method, method_eps, scale) for a, g in zip(acts, grads, strict=True)
    ]
    factor = _map_factor(scale, method, method_eps)
    outputs = combine_scaled(
        maps, factor, size, fuse, normalize, align_corners, eps, layer_weights, keep_layers, dtype
    )
    # An operator may not return one tensor twice (one layer that has image size already).
    return [o.clone() if any(o is p for p in outputs[:i]) else o for i, o in enumerate(outputs)]


def combine_scaled(
    maps: Sequence[Tensor],
    factor: Tensor | None,
    size: Sequence[int],
    fuse: str,
    normalize: str,
    align_corners: bool,
    eps: float,
    layer_weights: Sequence[float],
    keep_layers: bool,
    dtype: torch.dtype = torch.float32,
) -> list[Tensor]:
    """Combine layer maps that are ``factor`` [B,K] times ``maps``; None for 1.

    Returns:
        As :func:`cam_head`.
    """
    if factor is not None and eps:  # a divisor is not free of scale
        maps, factor = [m * factor[..., None, None] for m in maps], None
    heatmaps, ranges = combine_reference(
        maps, size, fuse, normalize, align_corners, eps, layer_weights, dtype
    )
    kept = list(maps) if keep_layers else []
    return _scaled([heatmaps, ranges, *kept], factor, fuse, normalize, len(maps))


def launch_cam_head(
    acts: Sequence[Tensor],
    grads: Sequence[Tensor],
    size: Sequence[int],
    method: str,
    fuse: str,
    normalize: str,
    align_corners: bool,
    eps: float,
    layer_weights: Sequence[float],
    method_eps: float = EPS,
    keep_layers: bool = True,
    dtype: torch.dtype = torch.float32,
    scale: Tensor | None = None,
) -> list[Tensor]:
    """Launch the kernels: :func:`cam_head_reference` for float32, bfloat16 and float16."""
    shape = grads[0].shape[:2]
    count = shape[0] * shape[1]
    method_eps = eps if method == "fullgrad" else method_eps
    flat, grids = launch_weigh(acts, grads, method, method_eps, scale)
    factor = _map_factor(scale, method, method_eps)
    sizes = [count * h * w for h, w in grids] if keep_layers or factor is not None else []
    if factor is not None and eps:
        rows = [p.view(count, -1) * factor.view(-1, 1) for p in flat.split_with_sizes(sizes)]
        flat, factor = torch.cat([row.flatten() for row in rows]), None
    heatmaps, ranges = launch_combine(
        flat, shape, grids, size, fuse, normalize, align_corners, eps, layer_weights, dtype
    )
    maps = []
    if keep_layers:
        parts = flat.split_with_sizes(sizes)
        maps = [part.view(*shape, *grid).clone() for part, grid in zip(parts, grids, strict=True)]
    return _scaled([heatmaps, ranges, *maps], factor, fuse, normalize, len(acts))


def _map_factor(scale: Tensor | None, method: str, eps: float) -> Tensor | None:
    return None if scale is None else map_scale(scale, method, eps).clamp_min(LEAST_SCALE)


def _scaled(
    outputs: list[Tensor], factor: Tensor | None, fuse: str, normalize: str, layers: int
) -> list[Tensor]:
    """Heatmaps, ranges and layer maps, times what was left out of the layer maps.

    A map that was min-max normalised is free of it; so are the fused maps of normalised ones.
    """
    if factor is None:
        return outputs
    heatmaps, ranges, *maps = outputs
    maps = [m * factor[..., None, None] for m in maps]
    if fuse != "gated" and normalize in ("map", "none"):
        fused = factor
        if fuse == "product":
            fused = (factor**layers).clamp_min(LEAST_SCALE)
        if fuse == "none":
            fused = fused[..., None]
        ranges = ranges * fused[..., None]
        if normalize == "none":
            heatmaps = (heatmaps * fused[..., None, None]).to(heatmaps.dtype)
    return [heatmaps, ranges, *maps]


def _cam_head(
    acts: list[Tensor],
    grads: list[Tensor],
    size: list[int],
    method: str,
    fuse: str,
    normalize: str,
    align_corners: bool,
    eps: float,
    layer_weights: list[float],
    method_eps: float,
    keep_layers: bool,
    dtype: torch.dtype,
    scale: Tensor | None = None,
) -> list[Tensor]:
    fits = all(x.is_cuda and x.dtype in KERNEL_DTYPES for x in [*acts, *grads])
    head = launch_cam_head if fits else cam_head_reference
    return head(
        acts,
        grads,
        size,
        method,
        fuse,
        normalize,
        align_corners,
        eps,
        layer_weights,
        method_eps,
        keep_layers,
        dtype,
        scale,
    )


def _shapes(
    acts: list[Tensor], grads: list[Tensor], size: list[int], _method: str, fuse: str, *rest: Any
) -> list[Tensor]:
    """What ``_cam_head`` returns, without values: of small networks its reference, which would tell
    the same, takes a fifth of a trace."""
    keep_layers, dtype = rest[5:7]
    shape, float32 = grads[0].shape[:2], torch.float32
    lead = [*shape, *([len(acts)] if fuse == "none" else [])]
    maps = [a.new_empty([*shape, *a.shape[2:]], dtype=float32) for a in acts if keep_layers]
    heatmaps = acts[0].new_empty([*lead, *size], dtype=dtype)
    return [heatmaps, acts[0].new_empty([*lead, 2], dtype=float32), *maps]


@cache
def define() -> None:
    """Define ``combicam::cam_head`` at its first use, since that imports torch's compiler."""
    torch.library.triton_op("combicam::cam_head", _cam_head, mutates_args=())
    torch.library.register_fake("combicam::cam_head", _shapes)


def cam_head(
    acts: Sequence[Tensor],
    grads: Sequence[Tensor],
    size: Sequence[int],
    method: str = "gradcam",
    fuse: str = "sum",
    normalize: str = "map",
    align_corners: bool = True,
    eps: float = 0.0,
    layer_weights: Sequence[float] = (),
    method_eps: float = EPS,
    keep_layers: bool = True,
    dtype: torch.dtype = torch.float32,
    scale: Tensor | None = None,
) -> list[Tensor]:
    """Heatmaps of a batch from the activations and gradients of all target layers.

    Args:
        acts: per layer [B,C,h,w]; float32, bfloat16 or float16; contiguous and channels-last are
            read as they are, other strides are copied.
        grads: per layer [B,K,C,h,w], the gradients of K scores; same layers, same order.
        size: (H, W) of the heatmaps, pixels.
        method, method_eps: see :func:`~combicam.kernels.weigh.weigh_reference`.
        fuse, normalize, align_corners, eps, layer_weights, dtype: see
            :func:`~combicam.kernels.combine.combine_reference`.
        keep_layers: also return the layer maps.
        scale: float32 [B,K], positive: the gradients are ``scale`` times ``grads``, see
            :func:`~combicam.kernels.weigh.weigh_reference`; None for 1. In ranges and maps, less
            than 2^-100 counts as that.

    Returns:
        ``[heatmaps [B,K,H,W], ranges float32 [B,K,2], *layer maps float32 [B,K,h,w]]``.

    Raises:
        ValueError: gradients that do not match the activations, or an unknown option.
    """
    if len(acts) != len(grads) or not acts:
        raise ValueError(
            f"cam_head: expected as many gradients as activations and at least one, got "
            f"{len(acts)} and {len(grads)}; pass one pair per target layer"
        )
    for a, g in zip(acts, grads, strict=True):
        if a.ndim != 4 or g.ndim != 5 or (a.shape[0], *a.shape[1:]) != (g.shape[0], *g.shape[2:]):
            raise ValueError(
                f"cam_head: acts and grads must share [B,C,h,w], got {tuple(a.shape)} and "
                f"{tuple(g.shape)} (expected [B,K,C,h,w]); pass the gradients of the same layer"
            )
    if scale is not None and scale.shape != grads[0].shape[:2]:
        raise ValueError(
            f"cam_head: expected scale [B,K] {tuple(grads[0].shape[:2])}, got "
            f"{tuple(scale.shape)}; pass one factor per image and target"
        )
    if method not in METHODS:
        raise ValueError(f"cam_head: expected a method of {sorted(METHODS)}, got {method!r}")
    if dtype not in DTYPES:
        raise ValueError(f"cam_head: expected a dtype of {DTYPES}, got {dtype}")
    if dtype == torch.uint8 and not normalize.endswith("map"):
        raise ValueError(
            f"cam_head: expected heatmaps in [0, 1] for uint8, got normalize={normalize!r}; "
            "normalise the fused map, or use float32"
        )
    if not torch.compiler.is_compiling():
        define()
    with on_device(acts[0].device):
        return list(
            torch.ops.combicam.cam_head(
                list(acts),
                list(grads),
                list(size),
                method,
                fuse,
                normalize,
                align_corners,
                eps,
                list(layer_weights),
                method_eps,
                keep_layers,
                dtype,
                scale,
            )
        )
