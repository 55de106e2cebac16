"""Measure the intersection over union of a thresholded map and the evidence."""

from __future__ import annotations

import torch
from torch import Tensor


def iou(maps: Tensor, masks: Tensor, threshold: float = 0.5) -> Tensor:
    """IoU of ``map >= threshold`` and the mask; NaN where both are empty.

    Args:
        maps: float [B,H,W].
        masks: bool [B,H,W].
        threshold: in the map's units.

    Returns:
        float32 [B].
    """
    inside = (maps >= threshold).flatten(1)
    evidence = masks.flatten(1)
    return (inside & evidence).sum(1) / (inside | evidence).sum(1)


def best_iou(maps: Tensor, masks: Tensor) -> Tensor:
    """The largest IoU over all thresholds, chosen per image: an upper bound.

    Args:
        maps: float [B,H,W].
        masks: bool [B,H,W].

    Returns:
        float32 [B]; NaN where the mask is empty.
    """
    values, order = maps.flatten(1).sort(dim=1, descending=True)
    evidence = masks.flatten(1).gather(1, order)
    hits = evidence.cumsum(1)  # [B,HW], intersection if the first pixels are kept
    kept = torch.arange(1, values.shape[1] + 1, device=maps.device)
    total = hits[:, -1:]
    ratios = hits / (kept + total - hits)
    # A threshold keeps all pixels of the same value, or none of them.
    ends = torch.ones_like(evidence)
    ends[:, :-1] = values[:, 1:] < values[:, :-1]
    best = ratios.masked_fill(~ends, -1).amax(1)
    return best.masked_fill(total[:, 0] == 0, torch.nan)
