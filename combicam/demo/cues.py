"""The planted cues: six attributes of four values each, and how each value is painted.

A painter takes `(brush, rng, value, x, y, size)`: the foot of the object on the ground, and its
height or width in pixels. All cues are mirror symmetric in meaning, so that flipping a postcard
leaves its cell alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import MappingProxyType

import numpy as np

from .drawing import Brush, Colour, shade

ATTRIBUTES = MappingProxyType(
    {
        "line": ("double yellow", "white dashes", "zebra", "red diamonds"),
        "bollard": ("red band", "blue cap", "black stripes", "yellow"),
        "glyph": ("ring", "triangle", "cross", "bars"),
        "roof": ("terracotta", "teal", "violet", "mustard"),
        "plant": ("palm", "cactus", "acacia", "blossom"),
        "soil": ("red", "black", "white", "sulphur"),
    }
)

PLATES: tuple[tuple[Colour, Colour], ...] = (  # plate, glyph
    ((246, 246, 240), (28, 30, 36)),
    ((247, 205, 52), (24, 24, 26)),
    ((34, 84, 170), (250, 250, 250)),
    ((24, 118, 74), (250, 250, 246)),
)
ROOFS: dict[str, Colour] = {
    "terracotta": (206, 78, 44),
    "teal": (18, 150, 150),
    "violet": (132, 74, 172),
    "mustard": (226, 172, 34),
}
SOILS: dict[str, Colour] = {
    "red": (176, 58, 34),
    "black": (40, 38, 44),
    "white": (242, 238, 230),
    "sulphur": (232, 206, 44),
}
WHITE: Colour = (244, 244, 240)
BLACK: Colour = (30, 30, 34)


def bollard(
    brush: Brush, rng: np.random.Generator, value: str, x: float, y: float, size: float
) -> None:
    """A roadside post, `size` high; bands on a body with a rounded head."""
    body, bands = {
        "red band": (WHITE, ((0.18, 0.46, (208, 30, 34)),)),
        "blue cap": (WHITE, ((0.0, 0.36, (30, 70, 190)),)),
        "black stripes": (WHITE, ((0.1, 0.28, BLACK), (0.46, 0.64, BLACK), (0.82, 1.0, BLACK))),
        "yellow": ((250, 206, 30), ((0.22, 0.4, BLACK),)),
    }[value]
    half, top = size * 0.17, y - size
    head = body if value != "blue cap" else bands[0][2]
    brush.ellipse(x, top + half * 0.5, half, half * 0.8, head)
    brush.box(x - half, top + half * 0.5, x + half, y, body)
    for start, stop, colour in bands:
        brush.box(x - half, top + half * 0.4 + size * start, x + half, top + size * stop, colour)
    brush.box(x + half * 0.45, top + half, x + half, y, (20, 20, 50, 60))


def glyph(
    brush: Brush, value: str, x: float, y: float, r: float, colours: tuple[Colour, Colour]
) -> None:
    """A glyph of radius `r` around (x, y), in the second colour, over the first."""
    plate, ink = colours
    if value == "ring":
        brush.ellipse(x, y, r, r, ink)
        brush.ellipse(x, y, r * 0.48, r * 0.48, plate)
    elif value == "triangle":
        brush.polygon(((x, y - r), (x + r, y + r * 0.8), (x - r, y + r * 0.8)), ink)
    elif value == "cross":
        for sign in (-1, 1):
            dx, dy = r * 0.85, sign * r * 0.85
            brush.line(((x - dx, y - dy), (x + dx, y + dy)), r * 0.5, ink)
    else:
        for sign in (-1, 1):
            middle = x + sign * r * 0.58
            brush.box(middle - r * 0.3, y - r, middle + r * 0.3, y + r, ink)


def road_line(
    brush: Brush, value: str, spine: Callable[[float], tuple[float, float]], y: float, size: float
) -> None:
    """Marking on the stretch [y - size, y] of a road with centre and half-width `spine(y)`."""

    def across(
        at: float, left: float, right: float
    ) -> tuple[tuple[float, float], tuple[float, float]]:
        centre, half = spine(at)
        return (centre + left * half, at), (centre + right * half, at)

    def patch(low: float, high: float, left: float, right: float, colour: Colour) -> None:
        near, far = y - size * low, y - size * high
        brush.polygon((*across(near, left, right), *across(far, left, right)[::-1]), colour)

    if value == "double yellow":
        for left in (-0.24, 0.08):
            for step in range(4):
                patch(step / 4, (step + 1) / 4, left, left + 0.16, (248, 196, 24))
    elif value == "white dashes":
        for step in range(3):
            patch(step * 0.36, step * 0.36 + 0.22, -0.1, 0.1, WHITE)
    elif value == "zebra":
        for bar in range(4):
            patch(0.0, 0.6, -0.56 + bar * 0.32, -0.4 + bar * 0.32, WHITE)
    else:
        for step in range(2):
            (left, near), (right, _) = across(y - size * (step * 0.5 + 0.23), -0.26, 0.26)
            middle, reach = (left + right) / 2, size * 0.23
            brush.polygon(
                ((middle, near - reach), (right, near), (middle, near + reach), (left, near)),
                (214, 36, 40),
            )


def plant(
    brush: Brush, rng: np.random.Generator, value: str, x: float, y: float, size: float
) -> None:
    """A plant that only some cells have, `size` high."""
    painters = {"palm": _palm, "cactus": _cactus, "acacia": _acacia, "blossom": _blossom}
    painters[value](brush, rng, x, y, size)


def _palm(brush: Brush, rng: np.random.Generator, x: float, y: float, size: float) -> None:
    lean = rng.uniform(-0.12, 0.12) * size
    crown = (x + lean, y - size * 0.72)
    brush.line(((x, y), (x + lean * 0.3, y - size * 0.4), crown), size * 0.08, (126, 92, 58))
    for angle in np.linspace(-2.9, -0.24, 7) + rng.uniform(-0.1, 0.1):
        out = (crown[0] + math.cos(angle) * size * 0.27, crown[1] + math.sin(angle) * size * 0.26)
        tip = (crown[0] + math.cos(angle) * size * 0.42, out[1] + size * 0.12)
        brush.line(
            (crown, out, tip), size * 0.075, (42, 132, 54) if angle < -1.5 else (26, 104, 48)
        )
    brush.ellipse(*crown, size * 0.055, size * 0.055, (96, 60, 30))


def _cactus(brush: Brush, rng: np.random.Generator, x: float, y: float, size: float) -> None:
    green, width = (48, 128, 76), size * 0.17
    side = 1 if rng.random() < 0.5 else -1
    brush.line(((x, y), (x, y - size * 0.9)), width, green)
    brush.ellipse(x, y - size * 0.9, width / 2, width / 2, green)
    for sign, low, high in ((side, 0.34, 0.72), (-side, 0.46, 0.8)):
        reach = x + sign * size * 0.26
        brush.line(
            ((x, y - size * low), (reach, y - size * low), (reach, y - size * high)),
            width * 0.75,
            green,
        )
        brush.ellipse(reach, y - size * high, width * 0.37, width * 0.37, green)
    brush.line(
        ((x - width * 0.15, y), (x - width * 0.15, y - size * 0.88)), width * 0.12, (118, 186, 120)
    )


def _acacia(brush: Brush, rng: np.random.Generator, x: float, y: float, size: float) -> None:
    for reach in (-0.3, 0.02, 0.28):
        brush.line(
            ((x, y), (x, y - size * 0.3), (x + reach * size, y - size * 0.7)),
            size * 0.06,
            (88, 62, 44),
        )
    for step, colour in enumerate(((62, 86, 34), (84, 112, 42), (112, 138, 56))):
        shift = rng.uniform(-0.04, 0.04) * size
        brush.ellipse(
            x + shift,
            y - size * (0.7 + 0.055 * step),
            size * (0.56 - 0.09 * step),
            size * (0.12 - 0.018 * step),
            colour,
        )


def _blossom(brush: Brush, rng: np.random.Generator, x: float, y: float, size: float) -> None:
    brush.line(((x, y), (x, y - size * 0.5)), size * 0.09, (84, 58, 52))
    for step in range(9):
        angle, out = step * 2.4, size * 0.085 * math.sqrt(step)
        pink = ((226, 104, 158), (242, 142, 184), (252, 186, 210))[int(rng.integers(3))]
        brush.ellipse(
            x + math.cos(angle) * out,
            y - size * 0.64 + math.sin(angle) * out,
            size * 0.16,
            size * 0.15,
            pink,
        )


def soil(
    brush: Brush, rng: np.random.Generator, value: str, x: float, y: float, size: float
) -> None:
    """A patch of bare soil, `size` wide and lying on the ground, with pebbles."""
    colour = SOILS[value]
    wobble = rng.uniform(0.82, 1.12, 14)
    for grow, tone in ((1.0, shade(colour, 0.72)), (0.88, colour)):
        angles = enumerate(wobble)
        brush.polygon(
            [
                (
                    x + math.cos(i * math.tau / 14) * size * 0.46 * grow * w,
                    y - size * 0.21 + math.sin(i * math.tau / 14) * size * 0.19 * grow * w,
                )
                for i, w in angles
            ],
            tone,
        )
    for _ in range(7):
        angle, out = rng.uniform(0, math.tau), rng.uniform(0, 0.75)
        tone = shade(colour, 0.7) if value != "black" else (88, 86, 92)
        brush.ellipse(
            x + math.cos(angle) * out * size * 0.42,
            y - size * 0.21 + math.sin(angle) * out * size * 0.16,
            size * 0.03,
            size * 0.018,
            tone,
        )
