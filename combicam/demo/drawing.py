"""A brush in final pixels over a supersampled canvas; a stencil may record what it paints."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw

Colour = tuple[int, ...]  # RGB, or RGBA where paint is translucent
Point = tuple[float, float]  # x, y in final pixels

SUPERSAMPLING = 2


def shade(colour: Colour, factor: float) -> Colour:
    """The colour, darker (factor < 1) or lighter (factor > 1)."""
    return tuple(min(255, round(value * factor)) for value in colour[:3])


def mix(one: Colour, other: Colour, share: float) -> Colour:
    """`share` of the other colour in the one."""
    return tuple(round(a + (b - a) * share) for a, b in zip(one, other, strict=False))


class Brush:
    """Paints shapes given in final pixels; while a stencil is set, they are marked there too."""

    def __init__(self, canvas: Image.Image) -> None:
        self.canvas = canvas
        self._paint = ImageDraw.Draw(canvas, "RGBA")
        self._mark: ImageDraw.ImageDraw | None = None

    def mark(self, stencil: Image.Image | None) -> None:
        """From now on marks what is painted on `stencil`, an "L" image of the canvas's size."""
        self._mark = None if stencil is None else ImageDraw.Draw(stencil)

    def polygon(self, points: Sequence[Point], colour: Colour) -> None:
        """A filled polygon."""
        scaled = [(x * SUPERSAMPLING, y * SUPERSAMPLING) for x, y in points]
        self._paint.polygon(scaled, fill=colour)
        if self._mark:
            self._mark.polygon(scaled, fill=255)

    def box(self, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
        """A filled rectangle."""
        self.polygon(((left, top), (right, top), (right, bottom), (left, bottom)), colour)

    def ellipse(self, x: float, y: float, rx: float, ry: float, colour: Colour) -> None:
        """A filled ellipse around (x, y)."""
        edges = [edge * SUPERSAMPLING for edge in (x - rx, y - ry, x + rx, y + ry)]
        self._paint.ellipse(edges, fill=colour)
        if self._mark:
            self._mark.ellipse(edges, fill=255)

    def line(self, points: Sequence[Point], width: float, colour: Colour) -> None:
        """A polyline with rounded joints."""
        scaled = [(x * SUPERSAMPLING, y * SUPERSAMPLING) for x, y in points]
        thickness = max(1, round(width * SUPERSAMPLING))
        self._paint.line(scaled, fill=colour, width=thickness, joint="curve")
        if self._mark:
            self._mark.line(scaled, fill=255, width=thickness, joint="curve")

    def shadow(self, x: float, y: float, rx: float) -> None:
        """A soft shadow on the ground; never marked."""
        edges = [edge * SUPERSAMPLING for edge in (x - rx, y - rx * 0.2, x + rx, y + rx * 0.2)]
        self._paint.ellipse(edges, fill=(20, 24, 40, 70))
