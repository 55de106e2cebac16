"""A small planet: 36 geo-cells, and postcards drawn from them.

Each cell is a word of the hexacode, the [6,3,4] code over GF(4): six attributes
(`cues.ATTRIBUTES`), four values each. A postcard plants four of the six, so no cue suffices: every
value is shared by nine cells, two cues leave several cells possible, any three single out one.
All else in the picture is a distractor.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from . import scenery
from .cues import ATTRIBUTES
from .drawing import SUPERSAMPLING, Brush
from .scene import Scene

SIDES = (128, 192)  # smallest and largest side of a postcard, pixels
PLANTED = 4  # cues in one postcard

_PLACES: tuple[tuple[str, float, float], ...] = (
    ("Anchorage", 61.2, -149.9), ("Vancouver", 49.3, -123.1), ("Yellowknife", 62.5, -114.4),
    ("Hermosillo", 29.1, -111.0), ("Denver", 39.7, -105.0), ("Winnipeg", 49.9, -97.1),
    ("Havana", 23.1, -82.4), ("Boston", 42.4, -71.1), ("Bogota", 4.7, -74.1),
    ("Cusco", -13.5, -72.0), ("Manaus", -3.1, -60.0), ("Asuncion", -25.3, -57.6),
    ("Ushuaia", -54.8, -68.3), ("Recife", -8.1, -34.9), ("Nuuk", 64.2, -51.7),
    ("Reykjavik", 64.1, -21.9), ("Dakar", 14.7, -17.5), ("Porto", 41.1, -8.6),
    ("Accra", 5.6, -0.2), ("Bergen", 60.4, 5.3), ("Tunis", 36.8, 10.2),
    ("Windhoek", -22.6, 17.1), ("Krakow", 50.1, 19.9), ("Cairo", 30.0, 31.2),
    ("Nairobi", -1.3, 36.8), ("Antsirabe", -19.9, 47.0), ("Shiraz", 29.6, 52.5),
    ("Perm", 58.0, 56.2), ("Samarkand", 39.7, 66.9), ("Pune", 18.5, 73.9),
    ("Irkutsk", 52.3, 104.3), ("Hanoi", 21.0, 105.8), ("Perth", -31.9, 115.9),
    ("Sapporo", 43.1, 141.4), ("Cairns", -16.9, 145.8), ("Dunedin", -45.9, 170.5),
)  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """A geo-cell: degrees north and east, and the values of the attributes, in their order."""

    index: int
    name: str
    latitude: float
    longitude: float
    cues: tuple[str, ...]


@dataclass(frozen=True)
class Cue:
    """A planted cue: its attribute, its value, and its box (left, top, right, bottom) in pixels."""

    attribute: str
    value: str
    box: tuple[int, int, int, int]


@dataclass(frozen=True, eq=False)
class Postcard:
    """A picture of a cell.

    Fields: image (uint8 [H,W,3] RGB); cell (index into `CELLS`); mask (bool [H,W], the pixels of
    the planted cues); cues (the planted ones).
    """

    image: np.ndarray
    cell: int
    mask: np.ndarray
    cues: tuple[Cue, ...]


def _times(a: int, b: int) -> int:
    """The product in GF(4); its elements 0, 1, w, w+1 are written 0, 1, 2, 3; the sum is XOR."""
    return 0 if a == 0 or b == 0 else (a + b - 2) % 3 + 1


def _codes() -> tuple[tuple[int, ...], ...]:
    """36 words (a, b, c, f(1), f(w), f(w+1)) of the hexacode, f(x) = ax² + bx + c.

    They are nine cosets of the multiples of a word without zeros: every value occurs nine times in
    every place. Source: Conway and Sloane, Sphere Packings, Lattices and Groups, chapter 3.
    """

    def word(a: int, b: int, c: int) -> tuple[int, ...]:
        return a, b, c, *(_times(a, _times(x, x)) ^ _times(b, x) ^ c for x in (1, 2, 3))

    messages = [(a, b, c) for a in range(4) for b in range(4) for c in range(4)]
    full = next(m for m in messages if 0 not in word(*m))
    chosen: list[tuple[int, ...]] = []
    for message in messages:
        coset = [
            word(*(m ^ _times(s, g) for m, g in zip(message, full, strict=True))) for s in range(4)
        ]
        if len(chosen) < len(_PLACES) and coset[0] not in chosen:
            chosen.extend(coset)
    return tuple(chosen)


CELLS: tuple[Cell, ...] = tuple(
    Cell(
        index, *place, tuple(values[v] for values, v in zip(ATTRIBUTES.values(), code, strict=True))
    )
    for index, (place, code) in enumerate(zip(_PLACES, _codes(), strict=True))
)


def postcard(cell: int, seed: int, size: tuple[int, int] | None = None) -> Postcard:
    """Draws a postcard of a cell; the same arguments give the same pixels in every process.

    Args:
        cell: index into `CELLS`.
        seed: non-negative; which postcard of the cell.
        size: (H, W), each 128 to 192 pixels; None: drawn from the seed.

    Raises:
        ValueError: an argument is out of range.
    """
    _check(cell, seed, size)
    rng = np.random.default_rng([seed, cell])
    drawn = rng.integers(SIDES[0], SIDES[1] + 1, 2)
    H, W = size or (int(drawn[0]), int(drawn[1]))
    land = scenery.survey(rng, H, W)
    canvas = scenery.canvas(rng, land)
    scene = Scene(Brush(canvas), rng, land)
    scenery.backdrop(scene.brush, rng, land)
    pairs = list(zip(ATTRIBUTES, CELLS[cell].cues, strict=True))
    planted = [pairs[i] for i in sorted(rng.permutation(len(pairs))[:PLANTED].tolist())]
    stencils = scene.furnish(planted)
    masks = [np.asarray(stencils[name].reduce(SUPERSAMPLING)) > 127 for name, _ in planted]
    return Postcard(
        image=_develop(canvas, rng, H, W),
        cell=cell,
        mask=np.logical_or.reduce(masks),
        cues=tuple(
            Cue(name, value, _box(mask)) for (name, value), mask in zip(planted, masks, strict=True)
        ),
    )


def _check(cell: int, seed: int, size: tuple[int, int] | None) -> None:
    if not 0 <= cell < len(CELLS):
        raise ValueError(
            f"postcard: expected cell in 0..{len(CELLS) - 1}, got {cell}; "
            "see combicam.demo.planet.CELLS"
        )
    if seed < 0:
        raise ValueError(
            f"postcard: expected a seed >= 0, got {seed}; number the postcards of a cell from 0"
        )
    if size is not None and not (
        len(size) == 2 and all(SIDES[0] <= side <= SIDES[1] for side in size)
    ):
        raise ValueError(
            f"postcard: expected size (H, W) with sides {SIDES[0]}..{SIDES[1]}, got {size}; "
            "pass None to draw one"
        )


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _develop(canvas: Image.Image, rng: np.random.Generator, H: int, W: int) -> np.ndarray:
    """Reduces the canvas and gives it light, colour cast, coarse blotches and grain."""
    pixels = np.asarray(canvas.reduce(SUPERSAMPLING), dtype=np.float32)
    cast = rng.uniform(0.95, 1.05, 3).astype(np.float32) * np.float32(rng.uniform(0.92, 1.12))
    blocks = rng.normal(0, 1.5, ((H + 7) // 8, (W + 7) // 8)).astype(np.float32)
    blotches = blocks.repeat(8, 0).repeat(8, 1)[:H, :W]
    grain = rng.standard_normal((H, W), dtype=np.float32) * np.float32(rng.uniform(1, 4))
    return (pixels * cast + (blotches + grain)[..., None]).clip(0, 255).astype(np.uint8)
