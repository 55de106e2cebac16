"""Draw the things in a postcard: houses and signs, which may carry a cue, and distractors.

A place is (x, y, size): the foot on the ground and the height or width, in pixels.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from .cues import PLATES, glyph
from .drawing import Brush, Colour, shade

WALLS: tuple[Colour, ...] = (
    (240, 232, 214),
    (226, 214, 190),
    (214, 216, 218),
    (246, 240, 232),
    (206, 190, 168),
)
NEUTRAL_ROOFS: tuple[Colour, ...] = ((104, 100, 100), (74, 72, 78), (128, 112, 98), (96, 84, 74))
CARS: tuple[Colour, ...] = (
    (196, 40, 40), (236, 236, 232), (40, 44, 52), (52, 96, 168),
    (150, 156, 160), (36, 120, 96), (226, 170, 50),
)  # fmt: skip
CLOTHES: tuple[Colour, ...] = (
    (190, 60, 60),
    (60, 80, 150),
    (230, 200, 90),
    (60, 120, 90),
    (90, 70, 110),
    (230, 230, 225),
)


def _pick(rng: np.random.Generator, options: tuple[Colour, ...]) -> Colour:
    return options[int(rng.integers(len(options)))]


def house(
    brush: Brush, rng: np.random.Generator, place: tuple[float, float, float],
    roof: Colour | None, stencil: Image.Image | None,
) -> None:  # fmt: skip
    """A house `size` wide; without a roof colour it is neutral. Only the roof is marked."""
    x, y, size = place
    wall, side = _pick(rng, WALLS), 1 if rng.random() < 0.5 else -1
    colour = roof or _pick(rng, NEUTRAL_ROOFS)
    eaves, ridge = y - size * 0.4, y - size * 0.82
    left, corner, right = (x + side * size * share for share in (-0.46, -0.08, 0.46))
    middle = (left + corner) / 2
    brush.shadow(x, y, size * 0.52)
    brush.box(corner, eaves - 1, right, y, shade(wall, 0.8))
    brush.polygon(((left, y), (left, eaves), (middle, ridge), (corner, eaves), (corner, y)), wall)
    brush.box(middle - size * 0.06, y - size * 0.24, middle + size * 0.06, y, (92, 66, 50))
    for share in (0.12, 0.3):
        window = x + side * size * share
        brush.box(
            window - size * 0.055,
            y - size * 0.29,
            window + size * 0.055,
            y - size * 0.14,
            (70, 92, 116),
        )
    brush.mark(stencil)
    far = x + side * size * 0.3
    over = side * size * 0.04
    brush.polygon(
        ((middle, ridge), (far, ridge), (right + over, eaves + 1), (corner + over, eaves + 1)),
        colour,
    )
    brush.line(
        ((left - over, eaves + 1), (middle, ridge), (corner + over, eaves + 1)),
        size * 0.06,
        shade(colour, 0.8),
    )
    for row in (0.35, 0.7):
        low = ridge + (eaves - ridge) * row
        start, stop = middle + (corner - middle) * row, far + (right - far) * row
        brush.line(((start, low), (stop, low)), 0.6, shade(colour, 0.82))
    brush.mark(None)


def sign(
    brush: Brush, rng: np.random.Generator, place: tuple[float, float, float],
    value: str | None, stencil: Image.Image | None,
) -> None:  # fmt: skip
    """A sign `size` high; without a value it is neutral. Only the plate is marked."""
    x, y, size = place
    plate, ink = PLATES[int(rng.integers(len(PLATES)))]
    half = size * 0.28
    middle = y - size + half
    brush.shadow(x, y, size * 0.14)
    brush.line(((x, y), (x, middle)), max(1.0, size * 0.06), (120, 122, 126))
    brush.mark(stencil)
    if rng.random() < 0.5:
        brush.ellipse(x, middle, half * 1.12, half * 1.12, ink)
        brush.ellipse(x, middle, half * 1.02, half * 1.02, plate)
        inner = half * 0.64
    else:
        brush.box(x - half, middle - half, x + half, middle + half, ink)
        brush.box(x - half * 0.9, middle - half * 0.9, x + half * 0.9, middle + half * 0.9, plate)
        inner = half * 0.7
    if value is not None:
        glyph(brush, value, x, middle, inner, (plate, ink))
    elif (kind := int(rng.integers(3))) == 0:
        brush.box(x - inner, middle - inner * 0.25, x + inner, middle + inner * 0.25, ink)
    elif kind == 1:
        brush.ellipse(x, middle, inner * 0.4, inner * 0.4, ink)
    brush.mark(None)


def car(brush: Brush, rng: np.random.Generator, x: float, y: float, size: float) -> None:
    """A car `size` wide, seen from the side."""
    paint, side = _pick(rng, CARS), 1 if rng.random() < 0.5 else -1
    brush.shadow(x, y, size * 0.52)
    cabin = ((-0.3, 0.3), (-0.2, 0.48), (0.14, 0.48), (0.28, 0.3))
    brush.polygon([(x + side * dx * size, y - dy * size) for dx, dy in cabin], shade(paint, 0.75))
    glass = ((-0.23, 0.3), (-0.16, 0.43), (0.11, 0.43), (0.2, 0.3))
    brush.polygon([(x + side * dx * size, y - dy * size) for dx, dy in glass], (150, 178, 196))
    body = ((-0.5, 0.1), (-0.48, 0.28), (-0.3, 0.32), (0.28, 0.32), (0.48, 0.24), (0.5, 0.1))
    brush.polygon([(x + side * dx * size, y - dy * size) for dx, dy in body], paint)
    for wheel in (-0.28, 0.28):
        brush.ellipse(x + wheel * size, y - size * 0.08, size * 0.1, size * 0.1, (26, 26, 30))
        brush.ellipse(
            x + wheel * size, y - size * 0.08, size * 0.045, size * 0.045, (150, 150, 154)
        )


def person(brush: Brush, rng: np.random.Generator, x: float, y: float, size: float) -> None:
    """Someone `size` high."""
    brush.shadow(x, y, size * 0.2)
    brush.box(x - size * 0.1, y - size * 0.45, x + size * 0.1, y, (50, 52, 70))
    brush.ellipse(x, y - size * 0.6, size * 0.15, size * 0.2, _pick(rng, CLOTHES))
    brush.ellipse(x, y - size * 0.89, size * 0.1, size * 0.11, (156, 112, 84))


def tree(brush: Brush, rng: np.random.Generator, x: float, y: float, size: float) -> None:
    """A common tree: it grows everywhere."""
    green = shade((70, 118, 60), rng.uniform(0.8, 1.15))
    brush.shadow(x, y, size * 0.3)
    brush.box(x - size * 0.045, y - size * 0.4, x + size * 0.045, y, (92, 70, 52))
    if rng.random() < 0.5:
        for dx, dy, r in ((-0.15, 0.5, 0.2), (0.15, 0.5, 0.2), (0.0, 0.72, 0.24)):
            brush.ellipse(x + dx * size, y - dy * size, r * size, r * size, green)
        brush.ellipse(x - size * 0.06, y - size * 0.78, size * 0.12, size * 0.1, shade(green, 1.18))
        return
    for step in range(3):
        top, half = y - size * (1.0 - 0.22 * step), size * (0.16 + 0.07 * step)
        brush.polygon(
            ((x, top), (x + half, top + size * 0.4), (x - half, top + size * 0.4)),
            shade(green, 0.7 + 0.08 * step),
        )


def rock(brush: Brush, rng: np.random.Generator, x: float, y: float, size: float) -> None:
    """A grey boulder `size` wide."""
    tops = rng.uniform(0.3, 0.6, 3)
    outline = ((-0.5, 0.0), (-0.35, tops[0]), (0.0, tops[1]), (0.35, tops[2]), (0.5, 0.0))
    brush.shadow(x, y, size * 0.55)
    brush.polygon([(x + dx * size, y - dy * size) for dx, dy in outline], (138, 136, 132))
    brush.polygon([(x + dx * size, y - dy * size) for dx, dy in outline[2:]], (112, 110, 110))


def post(brush: Brush, rng: np.random.Generator, x: float, y: float, size: float) -> None:
    """A plain wooden post: a bollard that says nothing."""
    brush.shadow(x, y, size * 0.2)
    brush.box(
        x - size * 0.13, y - size, x + size * 0.13, y, shade((126, 108, 88), rng.uniform(0.8, 1.1))
    )
    brush.box(x + size * 0.05, y - size, x + size * 0.13, y, (60, 50, 44))


def bush(brush: Brush, rng: np.random.Generator, x: float, y: float, size: float) -> None:
    """A low bush `size` wide."""
    green = shade((88, 124, 66), rng.uniform(0.8, 1.1))
    for dx, r in ((-0.25, 0.24), (0.25, 0.22), (0.0, 0.3)):
        brush.ellipse(x + dx * size, y - r * size * 0.7, r * size, r * size * 0.8, green)
