"""Show an explanation in Jupyter: a row of thumbnails per image."""

from __future__ import annotations

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from combicam.engine.drawing.colormaps import colormap
from combicam.engine.drawing.drawable import Drawable
from combicam.engine.drawing.overlay import display_range, overlay
from combicam.export.classes.classes import ClassTable

_IMAGES, _TARGETS, _HEIGHT = 8, 5, 180
_TILE = '<figure style="margin:0 8px 8px 0;display:inline-block;vertical-align:top">'
_CAPTION = '<figcaption style="font:12px sans-serif">'


def explanation_html(explanation: Drawable) -> str:
    """HTML of the first images and targets: image and overlays, or only maps without images.

    The HTML is self-contained.

    Args:
        explanation: of a batch.
    """
    batch, targets = explanation.targets.shape
    shape = tuple(explanation.heatmaps.shape)
    note = "" if explanation.photos else "; with_photos(images) lays the maps over them"
    text = [f"<div>Explanation of {batch} images, {targets} targets each, heatmaps {shape}{note}"]
    for image in range(min(batch, _IMAGES)):
        text.append("<div>" + "".join(_tiles(explanation, image)) + "</div>")
    if batch > _IMAGES:
        text.append(f"<div>… and {batch - _IMAGES} more</div>")
    return "".join([*text, "</div>"])


def _tiles(explanation: Drawable, image: int) -> list[str]:
    tiles = []
    photo = explanation.photos[image] if explanation.photos else None
    if photo is not None:
        photo = _small(photo)
        tiles.append(_tile(photo, "input"))
    count = min(explanation.targets.shape[1], _TARGETS)
    heatmaps = explanation.heatmaps[image, :count].detach().float()
    if heatmaps.ndim == 4:  # of fuse="none": one map per layer
        heatmaps = heatmaps.mean(1)
    for k, heat in enumerate(heatmaps.cpu().numpy()):
        name = target_name(int(explanation.targets[image, k]))
        score = float(explanation.scores[image, k])
        if photo is None:
            index = np.rint(display_range(heat) * 255).astype(int)
            picture = _small(np.rint(colormap()[index]).astype(np.uint8))
        else:
            picture = overlay(photo, heat)
        tiles.append(_tile(picture, f"{name} · {probability(score)}"))
    return tiles


def probability(score: float) -> str:
    """Format a probability; a difference of two keeps its sign."""
    if 0.9995 <= score < 1:
        return "> 99.9%"
    return f"{score:.1%}" if abs(score) >= 0.001 or score == 0 else f"{score:.1e}"


def target_name(target: int, classes: ClassTable | None = None) -> str:
    """The name of a target."""
    if target < 0:
        return "region or contrast"
    return classes.name(target) if classes is not None and classes.names else f"class {target}"


def _small(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = pixels.shape[:2]
    size = (max(1, round(width * _HEIGHT / height)), _HEIGHT)
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))


def _tile(pixels: NDArray[np.uint8], caption: str) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    image = f'<img alt="{caption}" src="data:image/png;base64,{data}">'
    return f"{_TILE}{image}{_CAPTION}{caption}</figcaption></figure>"
