"""Colours, overlays and panels."""

from __future__ import annotations

import numpy as np
import pytest

from combicam.engine.drawing.blend import blend, panel
from combicam.engine.drawing.colormaps import COLORMAPS, DEFAULT_COLORMAP, colormap


def lightness(rgb: np.ndarray) -> np.ndarray:
    return rgb @ np.array((0.299, 0.587, 0.114))


@pytest.mark.parametrize("name", ["viridis", "cividis", "inferno"])
def test_hotter_is_lighter(name: str) -> None:
    assert (np.diff(lightness(colormap(name))) > 0).all()
    assert colormap(name).min() >= 0 and colormap(name).max() <= 255


@pytest.mark.parametrize("name", ["viridis", "cividis", "jet"])
def test_colours_are_those_of_matplotlib(name: str) -> None:
    colormaps = pytest.importorskip("matplotlib").colormaps
    known = colormaps[name](np.arange(256))[:, :3] * 255
    assert np.abs(colormap(name) - known).mean() < (6 if name == "jet" else 0.6)


def test_unknown_colours_are_refused() -> None:
    assert DEFAULT_COLORMAP in COLORMAPS
    with pytest.raises(ValueError, match=r"expected one of .*'viridis'.*, got 'rainbow'"):
        colormap("rainbow")


def test_colours_are_chosen() -> None:
    image, heat = np.full((4, 4, 3), 90, np.uint8), np.ones((4, 4), np.float32)
    red, _, blue = blend(image, heat, "jet")[0, 0]
    assert red > 2 * blue
    assert not np.array_equal(blend(image, heat), blend(image, heat, "inferno"))


def test_blend_shows_heat_and_leaves_cold_places_recognisable() -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    cold = blend(image, np.zeros((20, 30), np.float32))
    hot = blend(image, np.ones((20, 30), np.float32))
    assert cold.dtype == np.uint8 and cold.shape == image.shape
    assert np.corrcoef(lightness(cold).ravel(), lightness(image).ravel())[0, 1] > 0.99
    assert (lightness(hot) > lightness(cold)).mean() > 0.9


def test_blend_takes_bytes_and_floats() -> None:
    image = np.full((4, 256, 3), 90, np.uint8)
    heat = np.tile(np.arange(256, dtype=np.uint8), (4, 1))
    assert np.array_equal(blend(image, heat), blend(image, heat / np.float32(255)))
    with pytest.raises(ValueError, match="resize the heatmap"):
        blend(image, heat[:2])


@pytest.mark.parametrize("height", [160, 300])
def test_panel_keeps_tiles_and_places_text_outside(height: int) -> None:
    tiles = [np.full((height, height, 3), shade, np.uint8) for shade in (10, 60, 120)]
    bare = panel(tiles, ["", "", ""])
    titled = panel(tiles, ["input", "Grad-CAM (last block)", "Combi-CAM"])
    assert titled.shape == bare.shape
    for tile in tiles:
        assert ((titled == tile[0, 0]).all(-1).sum()) >= height * height
    changed = np.argwhere((bare != titled).any(-1))
    assert len(changed) and changed[:, 0].max() < titled.shape[0] - height
    footed = panel(tiles, ["", "", ""], ["a" * 500, "second"])
    assert footed.shape[1] == bare.shape[1]
    below = footed[bare.shape[0] :]
    assert (below < 200).any() and (below[:, -3:] == 255).all()


def test_panel_refuses_what_does_not_fit() -> None:
    tile = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(ValueError, match="2 captions for 1 images"):
        panel([tile], ["a", "b"])
    with pytest.raises(ValueError, match=r"\[4, 5\]"):
        panel([tile, np.zeros((5, 4, 3), np.uint8)], ["a", "b"])
