"""Draw a heatmap over an image, and tiles side by side, without a plotting library."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from combicam.engine.drawing.colormaps import DEFAULT_COLORMAP, colormap

# Of paper, text, and less important text.
PAPER = (255, 255, 255)
INK = (28, 28, 32)
GREY = (104, 104, 112)
_LUMA = (0.299, 0.587, 0.114)


def blend(
    image: NDArray[np.uint8],
    heatmap: NDArray[np.uint8] | NDArray[np.floating],
    colours: str = DEFAULT_COLORMAP,
) -> NDArray[np.uint8]:
    """Draw a heatmap over an image: low values dim the image, high values glow.

    Args:
        image: uint8 [H,W,3].
        heatmap: [H,W]; uint8, or float in [0, 1].
        colours: ``viridis``, ``cividis``, ``inferno`` or ``jet``.

    Returns:
        uint8 [H,W,3].

    Raises:
        ValueError: shapes that do not match, or an unknown colormap.
    """
    if image.ndim != 3 or image.shape[2] != 3 or heatmap.shape != image.shape[:2]:
        raise ValueError(
            f"blend: expected image [H,W,3] and heatmap [H,W], got {image.shape} and "
            f"{heatmap.shape}; resize the heatmap"
        )
    heat = heatmap.astype(np.float32)
    if heatmap.dtype == np.uint8:
        heat /= 255
    heat = np.clip(heat, 0, 1)
    photo = image.astype(np.float32)
    # Half grey, so that colours of the image are not mistaken for heat.
    grey = photo @ np.array(_LUMA, np.float32)
    dim = (0.45 * photo + 0.55 * grey[..., None]) * 0.85
    hot = colormap(colours)[np.rint(heat * 255).astype(int)]
    opacity = (0.8 * heat**0.7)[..., None]
    mixed: NDArray[np.float32] = dim * (1 - opacity) + hot * opacity
    return np.rint(mixed).astype(np.uint8)


def panel(
    images: Sequence[NDArray[np.uint8]], captions: Sequence[str], footer: Sequence[str] = ()
) -> NDArray[np.uint8]:
    """Draw tiles side by side on white, each below its caption, with lines of text at the bottom.

    Args:
        images: uint8 [H,W,3], all of the same height.
        captions: one per image.
        footer: lines; long ones are shortened in the middle.

    Returns:
        uint8 [H',W',3].

    Raises:
        ValueError: no images, different heights, or the wrong number of captions.
    """
    heights = {image.shape[0] for image in images}
    if len(heights) != 1 or len(captions) != len(images):
        raise ValueError(
            f"panel: expected images of the same height with a caption each, got heights "
            f"{sorted(heights)} and {len(captions)} captions for {len(images)} images"
        )
    height = heights.pop()
    text = max(11, round(height * 0.05))
    gap, line = max(6, text // 2), round(text * 1.45)
    width = sum(image.shape[1] for image in images) + gap * (len(images) + 1)
    total = gap + line + height + gap + line * len(footer) + (gap if footer else 0)
    canvas = Image.new("RGB", (width, total), PAPER)
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=text)
    x = gap
    for image, caption in zip(images, captions, strict=True):
        label = fitted(draw, caption, font, image.shape[1])
        draw.text((x, gap + line / 2), label, fill=INK, font=font, anchor="lm")
        canvas.paste(Image.fromarray(image), (x, gap + line))
        x += image.shape[1] + gap
    y = gap + line + height + gap + line / 2
    for i, words in enumerate(footer):
        label = fitted(draw, words, font, width - 2 * gap)
        draw.text((gap, y + i * line), label, fill=INK if i == 0 else GREY, font=font, anchor="lm")
    return np.asarray(canvas)


def fitted(
    draw: ImageDraw.ImageDraw,
    text: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    width: int,
) -> str:
    """The text, or its two ends, because the end of a path matters most.

    Args:
        draw: on which it will be drawn.
        text: a line.
        font: of the text.
        width: that it may have, pixels.
    """
    # The built-in font has few accented letters: draw their base letters.
    letters = unicodedata.normalize("NFD", " ".join(text.split()))
    text = "".join(c for c in letters if not unicodedata.combining(c))
    kept = len(text)
    label = text
    while draw.textlength(label, font=font) > width and kept > 2:
        kept -= 1
        head = kept // 3
        label = f"{text[:head]}…{text[len(text) - (kept - head) :]}"
    return label
