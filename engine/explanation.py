"""``Explanation``: what an explainer returns for a batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Explanation:
    """Scores and heatmaps of B images and K targets each.

    Attributes:
        heatmaps: float32 [B,K,H,W], in [0,1] unless the spec leaves maps unnormalised
            ([B,K,L,H,W] for ``fuse="none"``).
        targets: int64 [B,K], the explained classes, best first; -1 for a region or a contrast.
        scores: float32 [B,K], probability of the target; of a contrast, p_a - p_b.
        logits: float32 [B,n].
        ranges: float32 [B,K,2], min and max of the fused map before normalisation ([B,K,L,2]).
        flat: bool [B,K] ([B,K,L]), the map is constant: its heatmap is all zeros.
        layer_maps: name -> float32 [B,K,h,w], only with ``keep_layers=True``.
    """

    heatmaps: Tensor
    targets: Tensor
    scores: Tensor
    logits: Tensor
    ranges: Tensor
    flat: Tensor
    layer_maps: Mapping[str, Tensor] = field(default_factory=dict)
