"""``combicam::cam_head``: all layers' activations and gradients become heatmaps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from combicam.kernels.combine import combine_reference
from combicam.kernels.weigh import EPS, METHODS, weigh_reference


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
) -> list[Tensor]:
    """Standard torch operations only; what portable artifacts contain."""
    maps = [weigh_reference(a, g, method, method_eps) for a, g in zip(acts, grads, strict=True)]
    heatmaps, ranges = combine_reference(
        maps, size, fuse, normalize, align_corners, eps, layer_weights
    )
    return [heatmaps, ranges, *maps]


@torch.library.custom_op("combicam::cam_head", mutates_args=())
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
) -> list[Tensor]:
    outputs = cam_head_reference(
        acts, grads, size, method, fuse, normalize, align_corners, eps, layer_weights, method_eps
    )
    # An operator may not return one tensor twice (one layer that has image size already).
    return [o.clone() if any(o is p for p in outputs[:i]) else o for i, o in enumerate(outputs)]


@_cam_head.register_fake
def _(
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
) -> list[Tensor]:
    lead = [*grads[0].shape[:2], *([len(acts)] if fuse == "none" else [])]
    new = grads[0].new_empty
    maps = [g.new_empty([*g.shape[:2], *g.shape[3:]], dtype=torch.float32) for g in grads]
    return [
        new([*lead, *size], dtype=torch.float32),
        new([*lead, 2], dtype=torch.float32),
        *maps,
    ]


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
) -> list[Tensor]:
    """Heatmaps of a batch from the activations and gradients of all target layers.

    Args:
        acts: per layer [B,C,h,w]; float32, bfloat16 or float16.
        grads: per layer [B,K,C,h,w], the gradients of K scores; same layers, same order.
        size: (H, W) of the heatmaps, pixels.
        method, method_eps: see :func:`~combicam.kernels.weigh.weigh_reference`.
        fuse, normalize, align_corners, eps, layer_weights: see
            :func:`~combicam.kernels.combine.combine_reference`.

    Returns:
        ``[heatmaps [B,K,H,W], ranges [B,K,2], *layer maps [B,K,h,w]]``, all float32.

    Raises:
        ValueError: gradients that do not belong to the activations.
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
    if method not in METHODS:
        raise ValueError(f"cam_head: expected a method of {sorted(METHODS)}, got {method!r}")
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
        )
    )
