"""Define ``Drawable``, the part of an explanation that figures and notebooks need."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


class Drawable(Protocol):
    """Maps of B images and K targets each; ``combicam.Explanation`` is one."""

    @property
    def heatmaps(self) -> Tensor:
        """float32 [B,K,H,W], or [B,K,L,H,W] of L layers."""

    @property
    def targets(self) -> Tensor:
        """int64 [B,K], negative where no single class is explained."""

    @property
    def scores(self) -> Tensor:
        """float32 [B,K]."""

    @property
    def layer_maps(self) -> Mapping[str, Tensor]:
        """Name -> float32 [B,K,h,w], shallow to deep, or none."""

    @property
    def photos(self) -> tuple[NDArray[np.uint8], ...]:
        """uint8 [H,W,3], one per image, or none."""
