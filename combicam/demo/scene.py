"""Place cues and distractors in a postcard without overlap, and paint them back to front."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from . import cues, things
from .drawing import Brush
from .scenery import Land

# The size (height or width) in pixels in a 160-pixel picture; the footprint's width and height as
# shares of it. A line's footprint is as wide as the road.
Shape = tuple[float, float, float]
CUE_SHAPES: dict[str, Shape] = {
    "line": (18.0, 0.0, 1.0),
    "bollard": (20.0, 0.4, 1.0),
    "glyph": (29.0, 0.62, 1.0),
    "roof": (29.0, 1.0, 0.86),
    "plant": (27.0, 1.0, 1.0),
    "soil": (28.0, 1.0, 0.44),
}
THING_SHAPES: dict[str, Shape] = {
    "house": (27.0, 1.0, 0.86),
    "sign": (27.0, 0.6, 1.0),
    "car": (25.0, 1.0, 0.5),
    "person": (15.0, 0.4, 1.0),
    "tree": (27.0, 0.7, 1.0),
    "rock": (13.0, 1.1, 0.6),
    "post": (16.0, 0.3, 1.0),
    "bush": (14.0, 1.0, 0.5),
}
DISTRACTORS = {
    "car": things.car, "person": things.person, "tree": things.tree,
    "rock": things.rock, "post": things.post, "bush": things.bush,
}  # fmt: skip
CUES = {"bollard": cues.bollard, "plant": cues.plant, "soil": cues.soil}


@dataclass(frozen=True)
class Placed:
    """A thing with its foot, its size and its cue's value, if it carries one."""

    kind: str
    value: str | None
    x: float
    y: float
    size: float


@dataclass
class Scene:
    """A land being furnished; `boxes` are the footprints taken."""

    brush: Brush
    rng: np.random.Generator
    land: Land
    boxes: list[tuple[float, float, float, float]] = field(default_factory=list)

    def furnish(self, planted: list[tuple[str, str]]) -> dict[str, Image.Image]:
        """Plants the cues, strews distractors; returns the stencil of each attribute."""
        stencils = {attribute: Image.new("L", self.brush.canvas.size) for attribute, _ in planted}
        placed = [self._plant(attribute, value) for attribute, value in planted]
        kinds = tuple(THING_SHAPES)
        for draw in self.rng.integers(len(kinds), size=int(self.rng.integers(5, 12))).tolist():
            distractor = self._place(kinds[draw], None, THING_SHAPES[kinds[draw]])
            placed += [distractor] if distractor else []
        for thing in sorted(placed, key=lambda t: (t.kind != "line", t.kind != "soil", t.y)):
            self._paint(thing, stencils.get(thing.kind))
        return stencils

    def _plant(self, attribute: str, value: str) -> Placed:
        """A place for a cue, which shrinks until there is room."""
        base, wide, high = CUE_SHAPES[attribute]
        while (thing := self._place(attribute, value, (base, wide, high))) is None:
            base *= 0.97
        return thing

    def _place(self, kind: str, value: str | None, shape: Shape) -> Placed | None:
        """A free place, or None after a few tries; nearer things are larger."""
        land, (base, wide, high) = self.land, shape
        base *= min(land.H, land.W) / 160
        reach = 0.6 if kind == "line" else 0.78
        for depth, across, stretch in self.rng.random((12, 3)).tolist():
            y = land.horizon + (land.H - land.horizon) * (0.2 + reach * depth)
            size = base * (0.72 + 0.5 * depth) * (0.88 + 0.24 * stretch)
            centre, half = land.road(y)
            width = size * wide or half * 2
            x = centre if kind == "line" else width / 2 + 2 + across * (land.W - width - 4)
            if kind == "car" and across < 0.6:
                x = centre + half * (across - 0.3)
            box = (x - width / 2 - 1, y - size * high - 1, x + width / 2 + 1, y + 1)
            blocked = kind not in ("line", "car") and land.on_road(y, box[0], box[2], 1.0)
            inside = 6 < x < land.W - 6 if kind == "line" else box[0] > 0 and box[2] < land.W
            crowded = any(_overlap(box, taken) for taken in self.boxes)
            if inside and box[1] > 2 and not blocked and not crowded:
                self.boxes.append(box)
                return Placed(kind, value, x, y, size)
        return None

    def _paint(self, thing: Placed, stencil: Image.Image | None) -> None:
        brush, rng, place = self.brush, self.rng, (thing.x, thing.y, thing.size)
        if thing.kind in ("roof", "house"):
            roof = cues.ROOFS[thing.value] if thing.value else None
            things.house(brush, rng, place, roof, stencil)
        elif thing.kind in ("glyph", "sign"):
            things.sign(brush, rng, place, thing.value, stencil)
        elif thing.value is None:
            DISTRACTORS[thing.kind](brush, rng, *place)
        else:
            if thing.kind in ("bollard", "plant"):
                brush.shadow(thing.x, thing.y, thing.size * 0.22)
            brush.mark(stencil)
            if thing.kind == "line":
                cues.road_line(brush, thing.value, self.land.road, thing.y, thing.size)
            else:
                CUES[thing.kind](brush, rng, thing.value, *place)
            brush.mark(None)


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
