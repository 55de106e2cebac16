"""Spearman's rank correlation of maps."""

from __future__ import annotations

import torch
from torch import Tensor


def rank_correlation(one: Tensor, other: Tensor) -> Tensor:
    """Correlation of the pixels' ranks, image by image; equal values share their mean rank.

    Args:
        one, other: float [B,H,W].

    Returns:
        float32 [B] in [-1, 1]; NaN where a map is constant.
    """
    a, b = (_ranks(maps.flatten(1)) for maps in (one, other))
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    spread = a.square().sum(1) * b.square().sum(1)
    return ((a * b).sum(1) / spread.sqrt()).float()


def _ranks(values: Tensor) -> Tensor:
    """Mean ranks, float64 [B,N]."""
    ordered = values.sort(dim=1).values
    below = torch.searchsorted(ordered, values)
    up_to = torch.searchsorted(ordered, values, right=True)
    return (below + up_to).double() / 2
