"""Draw a table of images: titles above the columns, a label before each row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from combicam.engine.drawing.blend import GREY, INK, PAPER, blend, fitted
from combicam.engine.drawing.colormaps import DEFAULT_COLORMAP

# Pixels: space, sizes of letters, distance of lines, width and height of the colour bar.
_MARGIN, _GAP, _LABEL = 18, 8, 150
_TITLE, _NOTE = 21, 16
_LINE, _SMALL_LINE = 28, 24
_BAR = (160, 12)


@dataclass(frozen=True)
class TableRow:
    """A row of images.

    Args:
        label: what the row is about; as many lines as it needs.
        note: a line in grey below the label.
        images: uint8 [H,W,3], one for each column, all of the table's size.
    """

    label: str
    note: str
    images: Sequence[NDArray[np.uint8]]


def draw_image_table(
    rows: Sequence[TableRow],
    titles: Sequence[tuple[str, str]],
    footer: str = "",
    colours: str = DEFAULT_COLORMAP,
) -> NDArray[np.uint8]:
    """Draw images in rows and columns on white, with a bar of the overlays' colours at the bottom.

    Args:
        rows: from top to bottom.
        titles: of the columns: a line, and a line in grey below it.
        footer: a line at the bottom.
        colours: colormap of the overlays.

    Returns:
        uint8 [H',W',3].

    Raises:
        ValueError: no rows, rows without an image for each title, or images of several sizes.
    """
    shapes = {image.shape for row in rows for image in row.images}
    if len(shapes) != 1 or any(len(row.images) != len(titles) for row in rows):
        raise ValueError(
            f"image table: expected rows of {len(titles)} images of one size, got "
            f"{[len(row.images) for row in rows]} images of the sizes {sorted(shapes)}"
        )
    height, width, _ = shapes.pop()
    left = _MARGIN + _LABEL + _GAP
    top = _MARGIN + _LINE + _SMALL_LINE
    canvas = Image.new(
        "RGB",
        (
            left + len(titles) * (width + _GAP) - _GAP + _MARGIN,
            top + len(rows) * (height + _GAP) + _SMALL_LINE + _MARGIN,
        ),
        PAPER,
    )
    draw = ImageDraw.Draw(canvas)
    for column, (title, note) in enumerate(titles):
        x = left + column * (width + _GAP)
        _write(draw, (x, top - _LINE - _GAP), title, _TITLE, INK, width)
        _write(draw, (x, top - _GAP - _GAP // 2), note, _NOTE, GREY, width)
    for index, row in enumerate(rows):
        y = top + index * (height + _GAP)
        _write_label(draw, row, (_MARGIN, y + height // 2))
        for column, image in enumerate(row.images):
            canvas.paste(Image.fromarray(image), (left + column * (width + _GAP), y))
    bottom = canvas.height - _MARGIN
    _write(draw, (_MARGIN, bottom), footer, _NOTE, GREY, canvas.width - 2 * _MARGIN - 2 * _BAR[0])
    _draw_bar(canvas, draw, bottom, colours)
    return np.asarray(canvas)


def _write(
    draw: ImageDraw.ImageDraw,
    place: tuple[int, int],
    text: str,
    size: int,
    colour: tuple[int, int, int],
    width: int,
) -> None:
    """A line of text that begins at a place of its baseline."""
    font = ImageFont.load_default(size=size)
    draw.text(place, fitted(draw, text, font, width), fill=colour, font=font, anchor="ls")


def _write_label(draw: ImageDraw.ImageDraw, row: TableRow, place: tuple[int, int]) -> None:
    """Label and note of a row, around the middle of its height."""
    font = ImageFont.load_default(size=_TITLE)
    lines = [""]
    for word in row.label.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and draw.textlength(longer, font=font) > _LABEL:
            lines.append(word)
        else:
            lines[-1] = longer
    x, middle = place
    y = middle - (_LINE * len(lines) + _SMALL_LINE) // 2 + _TITLE
    for number, text in enumerate(lines):
        _write(draw, (x, y + number * _LINE), text, _TITLE, INK, _LABEL)
    last = y + (len(lines) - 1) * _LINE
    _write(draw, (x, last + _SMALL_LINE), row.note, _NOTE, GREY, _LABEL)


def _draw_bar(canvas: Image.Image, draw: ImageDraw.ImageDraw, bottom: int, colours: str) -> None:
    """The colours from 0 to 1, as they are over a grey image, at the right of the canvas."""
    across, down = _BAR
    heat = np.tile(np.linspace(0, 1, across, dtype=np.float32), (down, 1))
    bar = blend(np.full((down, across, 3), 128, np.uint8), heat, colours)
    font = ImageFont.load_default(size=_NOTE)
    right = canvas.width - _MARGIN
    draw.text((right, bottom), "1", fill=GREY, font=font, anchor="rs")
    left = right - round(draw.textlength("1", font=font)) - _GAP - across
    canvas.paste(Image.fromarray(bar), (left, bottom - down))
    draw.text((left - _GAP, bottom), "0", fill=GREY, font=font, anchor="rs")
