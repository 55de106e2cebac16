"""Compute the energy-based pointing game: the share of a map inside the evidence."""

from __future__ import annotations

from torch import Tensor


def energy_inside(maps: Tensor, masks: Tensor) -> Tensor:
    """Sum of the map inside the mask / sum of the map; NaN for a map that is zero everywhere.

    Args:
        maps: float [B,H,W], not negative.
        masks: bool [B,H,W], the evidence.

    Returns:
        float32 [B], in [0, 1].

    Source: Score-CAM, arXiv 1910.01279, section 4.3.
    """
    values = maps.flatten(1).double()
    return ((values * masks.flatten(1)).sum(1) / values.sum(1)).float()
