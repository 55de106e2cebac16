"""Hold what an explainer returns for a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from combicam.engine.drawing.colormaps import DEFAULT_COLORMAP
from combicam.engine.drawing.overlay import as_photos, overlay
from combicam.export.classes.classes import ClassTable

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Explanation:
    """Scores and heatmaps of B images with K targets each. Jupyter shows them as overlays.

    Attributes:
        heatmaps: float32 [B,K,H,W], in [0,1] unless the spec leaves maps unnormalised
            ([B,K,L,H,W] for ``fuse="none"``).
        targets: int64 [B,K], the explained classes, best first; -1 for a region or a contrast.
        scores: float32 [B,K], probability of the target; for a contrast, p_a - p_b.
        logits: float32 [B,n].
        ranges: float32 [B,K,2], min and max of the fused map before normalisation ([B,K,L,2]).
        flat: bool [B,K] ([B,K,L]), the map is constant: its heatmap is all zeros.
        layer_maps: name -> float32 [B,K,h,w], only with ``keep_layers=True``.
        photos: original images, uint8 [H,W,3] on the CPU, or none; see :meth:`with_photos`.
    """

    heatmaps: Tensor
    targets: Tensor
    scores: Tensor
    logits: Tensor
    ranges: Tensor
    flat: Tensor
    layer_maps: Mapping[str, Tensor] = field(default_factory=dict)
    photos: tuple[NDArray[np.uint8], ...] = ()

    def with_photos(self, images: Any) -> Self:
        """A copy with original images to draw overlays on; explainers do not keep images.

        Args:
            images: uint8 [B,H,W,3], or [B,H,W,1] of grey ones, or B arrays or PIL images of any
                size that show exactly what the model saw.

        Raises:
            ValueError: not B images, or not bytes in RGB or grey.
        """
        return replace(self, photos=as_photos(images, len(self.heatmaps)))

    def overlay(
        self, images: Any = None, colormap: str = DEFAULT_COLORMAP
    ) -> list[NDArray[np.uint8]]:
        """Draw the heatmaps over the original images, at full resolution.

        Args:
            images: see :meth:`with_photos`; None for those of this explanation.
            colormap: ``viridis``, ``cividis``, ``inferno``, ``jet``.

        Returns:
            One uint8 [K,H,W,3] per image.

        Raises:
            ValueError: no images, images that do not match, or maps that were not fused.
        """
        photos = self._shown(images)
        heatmaps = self.heatmaps.detach().float().cpu().numpy()
        return [
            np.stack([overlay(photo, heat, colormap) for heat in heats])
            for photo, heats in zip(photos, heatmaps, strict=True)
        ]

    def figure(
        self,
        images: Any = None,
        *,
        classes: ClassTable | None = None,
        captions: Sequence[str] = (),
        colormap: str = DEFAULT_COLORMAP,
        layers: int = 4,
    ) -> Figure:
        """Draw a figure for a paper: input, maps of some layers, and the overlay of every target.

        Args:
            images: see :meth:`with_photos`; None for those of this explanation.
            classes: names of the targets.
            captions: a line for each image.
            colormap: ``viridis``, ``cividis``, ``inferno``, ``jet``.
            layers: largest number of layer maps, preferring the last of each resolution; none
                without ``keep_layers=True``.

        Returns:
            A matplotlib figure; ``figure.savefig("figure.pdf")`` has no margins.

        Raises:
            MissingExtra: matplotlib is not installed.
            ValueError: see :meth:`overlay`.
        """
        from combicam.engine.drawing.figure import draw_figure
        from combicam.engine.drawing.notebook import target_name

        shown = replace(self, photos=self._shown(images))
        names = [[target_name(t, classes) for t in row] for row in self.targets.tolist()]
        return draw_figure(shown, names, captions, colormap, layers)

    def _shown(self, images: Any) -> tuple[NDArray[np.uint8], ...]:
        photos = self.photos if images is None else as_photos(images, len(self.heatmaps))
        if not photos:
            raise ValueError(
                "overlay: expected images, got none: an explanation keeps no images; pass them, or "
                "call with_photos(images) once"
            )
        if self.heatmaps.ndim != 4:
            raise ValueError(
                "overlay: expected fused heatmaps [B,K,H,W], got those of fuse='none'; draw "
                "heatmaps[:, :, layer] with combicam.blend"
            )
        return photos

    def _repr_html_(self) -> str:
        from combicam.engine.drawing.notebook import explanation_html

        return explanation_html(self)
