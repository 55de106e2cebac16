"""Draw input, layer maps and overlays side by side, for papers; needs matplotlib."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from combicam.engine.drawing.colormaps import colormap
from combicam.engine.drawing.drawable import Drawable
from combicam.engine.drawing.notebook import probability
from combicam.engine.drawing.overlay import display_range, overlay, scale_heat
from combicam.requirements import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Inches and points: a row of four tiles fits the text width of a paper.
_ROW, _TITLE, _GAP, _MARGIN, _BAR, _TICKS = 1.55, 0.36, 0.06, 0.04, 0.07, 0.24
_POINTS, _LINE = 7.5, 1.25
_LETTER = _POINTS / 72 * 0.54  # mean width of a letter, inches
_PIXELS = 600  # of a tile, at most: 380 dots per inch
_GREY = "#5a5a62"


class _Tile(NamedTuple):
    title: str
    subtitle: str
    pixels: NDArray[np.uint8]

    @property
    def aspect(self) -> float:
        return self.pixels.shape[1] / self.pixels.shape[0]


def draw_figure(
    explanation: Drawable,
    names: Sequence[Sequence[str]],
    captions: Sequence[str],
    colours: str,
    layers: int,
) -> Figure:
    """Draw a row of tiles for every image of an explanation, and a colour bar.

    Args:
        explanation: with its images.
        names: of the targets of each image.
        captions: a line for each image, or none.
        colours: a colormap.
        layers: largest number of layer maps.

    Raises:
        MissingExtra: matplotlib is not installed.
        ValueError: the wrong number of captions, or ``layers`` below 0.
    """
    if layers < 0:
        raise ValueError(f"figure: expected layers >= 0, got {layers}; 0 draws no layer maps")
    if captions and len(captions) != len(explanation.photos):
        raise ValueError(
            f"figure: expected {len(explanation.photos)} captions, one per photo, got "
            f"{len(captions)}"
        )
    shown = shown_layers(explanation.layer_maps, layers)
    rows = [
        list(_tiles(explanation, i, shown, names[i], captions[i] if captions else "", colours))
        for i in range(len(explanation.photos))
    ]
    return _layout(rows, colours)


def shown_layers(maps: Mapping[str, Tensor], most: int) -> list[str]:
    """Choose layers to draw: the last of each resolution, or evenly spaced ones if they share it.

    Args:
        maps: of all layers, shallow to deep.
        most: largest number of layers.
    """
    last = {tuple(values.shape[-2:]): name for name, values in maps.items()}
    names = [name for name in maps if name in last.values()]
    if len(names) < min(most, 3):
        names = list(maps)
    count = min(most, len(names))
    places = np.linspace(len(names) - 1, 0, count).round().astype(int)
    return [names[i] for i in sorted(set(places.tolist()))] if count > 0 else []


def _tiles(
    explanation: Drawable,
    image: int,
    layers: Sequence[str],
    names: Sequence[str],
    caption: str,
    colours: str,
) -> Iterator[_Tile]:
    photo = _fitting(explanation.photos[image])
    size = photo.shape[1::-1]
    yield _Tile("input", caption, photo)
    for layer in layers:
        heat = explanation.layer_maps[layer][image, 0].detach().float().cpu().numpy()
        top = heat.max().clip(min=np.finfo(np.float32).tiny)
        scaled = scale_heat(display_range(heat / top), size)
        painted = colormap(colours)[np.rint(scaled * 255).astype(int)]
        grid = f"{heat.shape[0]} × {heat.shape[1]}"
        yield _Tile(layer, grid, np.rint(painted).astype(np.uint8))
    heatmaps = explanation.heatmaps[image].detach().float().cpu().numpy()
    for k, (name, heat) in enumerate(zip(names, heatmaps, strict=True)):
        score = probability(float(explanation.scores[image, k]))
        yield _Tile(name, score, overlay(photo, heat, colours))


def _fitting(photo: NDArray[np.uint8]) -> NDArray[np.uint8]:
    scale = _PIXELS / photo.shape[0]
    if scale >= 1:
        return photo
    size = (max(1, round(photo.shape[1] * scale)), _PIXELS)
    return np.asarray(Image.fromarray(photo).resize(size, Image.Resampling.LANCZOS))


def _layout(rows: Sequence[Sequence[_Tile]], colours: str) -> Figure:
    """Lay out tiles in inches, because matplotlib's layouts leave margins around images."""
    figures, colors = _import_matplotlib()
    aspects = [sum(tile.aspect for tile in row) for row in rows]
    # All rows have the same width; their heights follow from the images' aspect ratios.
    tiles = _ROW * sum(aspects) / len(rows)
    heights = [tiles / aspect for aspect in aspects]
    width = _MARGIN + tiles + len(rows[0]) * _GAP + _BAR + _TICKS
    height = sum(heights) + len(rows) * (_TITLE + _GAP) + _MARGIN
    figure: Figure = figures(figsize=(width, height), dpi=200)
    top = height - _MARGIN
    for row, down in zip(rows, heights, strict=True):
        left, bottom = _MARGIN, top - _TITLE - down
        for tile in row:
            across = down * tile.aspect
            _draw_tile(figure, tile, (left, bottom, across, down))
            left += across + _GAP
        place = (left / width, bottom / height, _BAR / width, down / height)
        _draw_bar(figure, place, colors(colormap(colours) / 255))
        top = bottom - _GAP
    return figure


def _draw_tile(figure: Figure, tile: _Tile, place: tuple[float, float, float, float]) -> None:
    left, bottom, across, down = place
    width, height = figure.get_size_inches()
    axes = figure.add_axes((left / width, bottom / height, across / width, down / height))
    axes.set_axis_off()
    axes.imshow(tile.pixels, aspect="auto", interpolation="antialiased")
    line = _POINTS / 72 * _LINE
    for text, above, colour in (
        (tile.title, line, "black"),
        (tile.subtitle, 0.0, _GREY),
    ):
        figure.text(
            left / width,
            (bottom + down + 0.05 + above) / height,
            _shortened(text, across),
            fontsize=_POINTS,
            color=colour,
            va="bottom",
            parse_math=False,
        )


def _draw_bar(figure: Figure, place: tuple[float, float, float, float], colours: Any) -> None:
    axes = figure.add_axes(place)
    axes.imshow(np.linspace(1, 0, 256)[:, None], aspect="auto", cmap=colours)
    axes.set_xticks([])
    axes.yaxis.tick_right()
    axes.set_yticks([0, 127.5, 255], ["1", "0.5", "0"], fontsize=_POINTS - 1)
    axes.tick_params(length=1.5, width=0.4, pad=1.5)
    for spine in axes.spines.values():
        spine.set_linewidth(0.4)


def _shortened(text: str, inches: float) -> str:
    """The two ends of a text that is too long."""
    most = max(4, int(inches / _LETTER))
    text = " ".join(text.split())
    if len(text) <= most:
        return text
    head = most // 2
    return f"{text[:head]}…{text[len(text) - (most - head - 1) :]}"


def _import_matplotlib() -> tuple[Any, Any]:
    require("matplotlib.figure", extra="figures", operation="figure")
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure

    class ShownFigure(Figure):
        """A figure that Jupyter shows even if pyplot was not imported."""

        def _repr_png_(self) -> bytes:
            buffer = io.BytesIO()
            self.savefig(buffer, format="png")
            return buffer.getvalue()

    return ShownFigure, ListedColormap
