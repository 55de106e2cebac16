"""Explain single images and draw their overlays."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from combicam.engine.drawing.colormaps import DEFAULT_COLORMAP
from combicam.engine.drawing.figure import draw_figure
from combicam.engine.drawing.notebook import probability, target_name
from combicam.engine.drawing.overlay import overlay
from combicam.engine.explain.explainer import Explainer
from combicam.engine.explain.explanation import Explanation
from combicam.engine.explain.targets import Targets
from combicam.engine.geo.location_target import LocationTarget
from combicam.engine.images.decode import MAX_PIXELS, DecodeConfig, decode_image
from combicam.engine.images.resize import visible_box
from combicam.engine.storage.new_file import new_file
from combicam.export.preprocess import Preprocess

FIGURE_FORMATS = ("png", "pdf", "svg")
_FRAME = 255


class PhotoPictures:
    """Explains images one by one, and writes overlays and figures.

    Args:
        explainer: of any model; for layer maps in figures, one that keeps them.
        target: what to explain; None for the best classes.
        colormap: of the overlays.
        figure: ``png``, ``pdf`` or ``svg`` to draw figures too; None for no figures.
        max_pixels: refuse images with more pixels.

    Raises:
        ValueError: the target is ``truth``, but single images have no ground truth; or a network
            that takes no photos.
    """

    def __init__(
        self,
        explainer: Explainer,
        target: LocationTarget | None = None,
        colormap: str = DEFAULT_COLORMAP,
        figure: str | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        if target is not None and target.needs_truth:
            raise ValueError(
                "overlay: expected targets that are the same for all images, got 'truth'; name the "
                "location as LAT,LON"
            )
        explainer.preprocess.check_photos("overlay")
        self._explainer = explainer
        self._target = target
        self._colormap = colormap
        self._figure = figure
        self._decode = DecodeConfig(max_pixels=max_pixels)

    def draw(self, photo: Path, stem: Path) -> list[str]:
        """Explain an image and write ``STEM.overlay.png``, one overlay per target.

        Args:
            photo: image file.
            stem: of the output files; further targets get ``STEM.overlay-2.png``, …

        Returns:
            A line per target with class, probability and file, then the figure's file.

        Raises:
            OSError: a missing file, or no space left.
            DecodeError: not an image, or too large.
        """
        data = photo.read_bytes()
        decoded = decode_image(data, self._explainer.preprocess, self._decode)
        size = Preprocess((decoded.height, decoded.width), resize="squash")
        pixels = decode_image(data, size, self._decode).pixels
        explanation = self._explain(decoded.pixels)
        box = _seen_pixels((decoded.width, decoded.height), self._explainer.preprocess)
        names = self._names(explanation)
        lines = []
        for k, heat in enumerate(explanation.heatmaps[0].float().cpu().numpy()):
            file = stem.with_name(f"{stem.name}.overlay{f'-{k + 1}' if k else ''}.png")
            picture = overlay(pixels, heat, self._colormap, box)
            with new_file(file, "overlay") as temporary:
                Image.fromarray(_framed(picture, box)).save(temporary, "PNG")
            score = probability(float(explanation.scores[0, k]))
            lines.append(f"{names[k]}, {score}, {file}")
        if self._figure is not None:
            file = stem.with_name(f"{stem.name}.figure.{self._figure}")
            left, top, right, bottom = box
            shown = replace(explanation, photos=(pixels[top:bottom, left:right],))
            figure = draw_figure(shown, [names], [photo.name], self._colormap, layers=4)
            with new_file(file, "overlay") as temporary:
                figure.savefig(temporary, format=self._figure)
            lines.append(str(file))
        return lines

    def _explain(self, pixels: NDArray[np.uint8]) -> Explanation:
        if self._target is None:
            return self._explainer(pixels[None])
        values = self._target.targets([], 1).contiguous()
        return self._explainer(pixels[None], targets=Targets(values, self._target.kind))

    def _names(self, explanation: Explanation) -> list[str]:
        targets: list[int] = explanation.targets[0].tolist()
        names = [target_name(target, self._explainer.classes) for target in targets]
        if self._target is None:
            return names
        known = zip(targets, names, self._target.words, strict=True)
        return [word if target < 0 else name for target, name, word in known]


def _seen_pixels(photo: tuple[int, int], preprocess: Preprocess) -> tuple[int, int, int, int]:
    """The visible box in whole pixels, at least one."""
    left, top, right, bottom = visible_box(photo, preprocess)
    x, y = min(round(left), photo[0] - 1), min(round(top), photo[1] - 1)
    return x, y, max(x + 1, round(right)), max(y + 1, round(bottom))


def _framed(picture: NDArray[np.uint8], box: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    """Draw a thin white line around the part that the model saw, if it is not the whole image."""
    left, top, right, bottom = box
    height, width = picture.shape[:2]
    if box == (0, 0, width, height):
        return picture
    line = max(1, round(min(height, width) / 400))
    framed = picture.copy()
    for rows, columns in (
        (slice(top, top + line), slice(left, right)),
        (slice(bottom - line, bottom), slice(left, right)),
        (slice(top, bottom), slice(left, left + line)),
        (slice(top, bottom), slice(right - line, right)),
    ):
        framed[rows, columns] = _FRAME
    return framed
