"""Draw the backdrop of a postcard: sky, hills, ground and road, the same for all cells."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .drawing import SUPERSAMPLING, Brush, Colour, mix, shade

SKIES: tuple[tuple[Colour, Colour], ...] = (  # zenith, horizon
    ((66, 134, 214), (196, 224, 244)),
    ((96, 160, 220), (232, 238, 236)),
    ((44, 98, 180), (250, 214, 170)),
    ((120, 132, 176), (252, 204, 178)),
    ((150, 164, 180), (214, 220, 224)),
)
HILLS: tuple[Colour, ...] = ((122, 146, 168), (108, 140, 132), (132, 132, 150), (96, 128, 104))
GROUNDS: tuple[Colour, ...] = (
    (126, 156, 82),
    (108, 144, 84),
    (146, 158, 96),
    (132, 144, 104),
    (164, 164, 122),
)
ASPHALT: tuple[Colour, ...] = ((104, 106, 112), (90, 92, 98), (120, 118, 118))


@dataclass(frozen=True)
class Land:
    """Where things may stand: the horizon's row, the picture's size, and a bending road.

    Fields, in pixels: horizon (its row); H, W; foot, vanishing (x of the road's centre at the
    bottom and at the horizon); bend; half (the road's half-width at the bottom).
    """

    horizon: float
    H: int
    W: int
    foot: float
    vanishing: float
    bend: float
    half: float

    def depth(self, y: float) -> float:
        """0 at the horizon, 1 at the bottom edge."""
        return (y - self.horizon) / (self.H - self.horizon)

    def road(self, y: float) -> tuple[float, float]:
        """The road's centre and half-width at row y."""
        near = self.depth(y)
        centre = (
            self.vanishing + (self.foot - self.vanishing) * near + self.bend * near * (1 - near)
        )
        return centre, 0.8 + (self.half - 0.8) * max(near, 0.0)

    def on_road(self, y: float, left: float, right: float, margin: float) -> bool:
        """Whether [left, right] at row y touches the road."""
        centre, half = self.road(y)
        return right > centre - half - margin and left < centre + half + margin


def survey(rng: np.random.Generator, H: int, W: int) -> Land:
    """A random lie of the land."""
    foot = W * rng.uniform(0.2, 0.8)
    return Land(
        horizon=H * rng.uniform(0.32, 0.46),
        H=H,
        W=W,
        foot=foot,
        vanishing=W * rng.uniform(0.25, 0.75),
        bend=W * rng.uniform(-0.35, 0.35),
        half=min(H, W) * rng.uniform(0.15, 0.21),
    )


def canvas(rng: np.random.Generator, land: Land) -> Image.Image:
    """The supersampled canvas with the gradients of sky and ground."""
    zenith, haze = SKIES[int(rng.integers(len(SKIES)))]
    ground = shade(GROUNDS[int(rng.integers(len(GROUNDS)))], rng.uniform(0.9, 1.1))
    rows = np.arange(land.H * SUPERSAMPLING, dtype=np.float32) / SUPERSAMPLING
    stops = (0.0, land.horizon, land.horizon + 0.01, land.H)
    colours = (zenith, haze, mix(ground, haze, 0.35), shade(ground, 0.86))
    column = np.stack(
        [np.interp(rows, stops, [colour[i] for colour in colours]) for i in range(3)], -1
    )
    pixels = np.broadcast_to(
        column[:, None].astype(np.uint8), (len(rows), land.W * SUPERSAMPLING, 3)
    )
    return Image.fromarray(np.ascontiguousarray(pixels))


def backdrop(brush: Brush, rng: np.random.Generator, land: Land) -> None:
    """Sun, clouds, hills, fields and the road."""
    size = min(land.H, land.W) / 160
    if rng.random() < 0.55:
        x, y, r = (
            rng.uniform(0.05, 0.95) * land.W,
            rng.uniform(0.15, 0.8) * land.horizon,
            rng.uniform(5, 9) * size,
        )
        for grow, alpha in ((2.4, 34), (1.6, 60), (1.0, 255)):
            brush.ellipse(x, y, r * grow, r * grow, (255, 244, 206, alpha))
    for _ in range(int(rng.integers(0, 5))):
        _cloud(
            brush,
            rng,
            rng.uniform(0, land.W),
            rng.uniform(0.08, 0.75) * land.horizon,
            rng.uniform(6, 15) * size,
        )
    _hills(brush, rng, land)
    _fields(brush, rng, land)
    _road(brush, rng, land)


def _cloud(brush: Brush, rng: np.random.Generator, x: float, y: float, size: float) -> None:
    for shift in np.linspace(-1.2, 1.2, 5):
        lift = 0.42 * (1 - (shift / 1.5) ** 2) * rng.uniform(0.8, 1.2)
        brush.ellipse(
            x + shift * size, y - lift * size * 0.5, size * 0.6, size * lift, (255, 255, 255, 150)
        )


def _hills(brush: Brush, rng: np.random.Generator, land: Land) -> None:
    tone = HILLS[int(rng.integers(len(HILLS)))]
    xs = np.linspace(0, land.W, 25)
    for layer in range(int(rng.integers(1, 4))):
        height = land.H * rng.uniform(0.05, 0.15) / (1 + 0.6 * layer)
        waves = np.zeros_like(xs)
        for k in (1.0, 2.0, 4.0):
            waves += np.sin(xs / land.W * rng.uniform(2, 5) * k + rng.uniform(0, math.tau)) / k
        ridge = land.horizon - height * (1.1 + 0.6 * waves).clip(0.05)
        outline = [(float(x), float(y)) for x, y in zip(xs, ridge, strict=True)]
        colour = mix(tone, (226, 232, 238), 0.45 - 0.16 * layer)
        brush.polygon(
            [(0.0, land.horizon + 1), *outline, (float(land.W), land.horizon + 1)], colour
        )


def _fields(brush: Brush, rng: np.random.Generator, land: Land) -> None:
    """Translucent stripes of light and dark meadow, with tufts."""
    for _ in range(int(rng.integers(3, 7))):
        y = land.horizon + (land.H - land.horizon) * rng.uniform(0.02, 1.0) ** 1.5
        reach, rise = (
            land.W * rng.uniform(0.2, 0.6),
            (2 + 14 * land.depth(y)) * rng.uniform(0.4, 1.0),
        )
        tone = (255, 255, 190, 26) if rng.random() < 0.5 else (20, 60, 20, 30)
        brush.ellipse(rng.uniform(0, land.W), y + rise, reach, rise, tone)
    for x, near, light in rng.random((28, 3)):
        y = land.horizon + (land.H - land.horizon) * (0.05 + 0.95 * near)
        reach, tone = 0.8 + 2.2 * near, (60, 96, 44, 120) if light < 0.6 else (206, 206, 130, 120)
        for lean in (-0.6, 0.0, 0.6):
            brush.line(((x * land.W, y), (x * land.W + lean * reach, y - reach)), 0.5, tone)


def _road(brush: Brush, rng: np.random.Generator, land: Land) -> None:
    asphalt = ASPHALT[int(rng.integers(len(ASPHALT)))]
    rows = np.linspace(land.horizon, land.H + 1, 14)
    for grow, colour in ((1.18, (150, 142, 120)), (1.0, asphalt)):
        edges = [land.road(float(y)) for y in rows]
        left = [(c - w * grow, float(y)) for (c, w), y in zip(edges, rows, strict=True)]
        right = [(c + w * grow, float(y)) for (c, w), y in zip(edges, rows, strict=True)]
        brush.polygon([*left, *right[::-1]], colour)
    for _ in range(int(rng.integers(0, 4))):  # repaired asphalt
        y = land.horizon + (land.H - land.horizon) * rng.uniform(0.3, 1.0)
        centre, half = land.road(y)
        brush.ellipse(
            centre + rng.uniform(-0.5, 0.5) * half,
            y,
            half * 0.25,
            half * 0.1,
            (*shade(asphalt, 0.8), 200),
        )
