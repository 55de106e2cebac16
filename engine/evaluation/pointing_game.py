"""Compute the pointing game: whether a map's maximum lies on the evidence."""

from __future__ import annotations

import torch
from torch import Tensor


def pointing_game(maps: Tensor, masks: Tensor, tolerance: float = 15) -> Tensor:
    """1 where a pixel of the mask lies within ``tolerance`` of the maximum, else 0.

    Of equal maxima, the first in reading order counts. NaN if the mask is empty.

    Args:
        maps: float [B,H,W].
        masks: bool [B,H,W], the evidence.
        tolerance: radius, pixels.

    Returns:
        float32 [B].

    Source: Zhang et al., ECCV 2016, arXiv 1608.00507; 15 px is theirs.
    """
    height, width = maps.shape[1:]
    peak = maps.flatten(1).argmax(1)
    rows = torch.arange(height, device=maps.device)
    columns = torch.arange(width, device=maps.device)
    down = (rows[None] - (peak // width)[:, None]).square()
    across = (columns[None] - (peak % width)[:, None]).square()
    near = down[:, :, None] + across[:, None] <= tolerance**2
    hits = (near & masks).flatten(1).any(1).float()
    return hits.masked_fill(~masks.flatten(1).any(1), torch.nan)
