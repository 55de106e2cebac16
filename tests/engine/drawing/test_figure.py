"""What an explanation draws of itself: overlays, figures, Jupyter."""

from __future__ import annotations

import base64
import io
import re
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from combicam import ClassTable, Explanation, MissingExtra
from combicam.engine.drawing.figure import shown_layers
from combicam.engine.drawing.notebook import probability
from combicam.engine.drawing.overlay import as_photos, overlay

BRIGHT = 40  # how much lighter a hot place is than the dimmed photo, at least


def explanation(
    heat: np.ndarray, photos: tuple[np.ndarray, ...] = (), scores: float = 0.9
) -> Explanation:
    """Of heatmaps [B,K,h,w]."""
    maps = torch.from_numpy(heat.astype(np.float32))
    shape = maps.shape[:2]
    return Explanation(
        heatmaps=maps,
        targets=torch.arange(shape[0] * shape[1]).reshape(shape),
        scores=torch.full(shape, scores),
        logits=torch.zeros(shape[0], 5),
        ranges=torch.zeros(*shape, 2),
        flat=torch.zeros(shape, dtype=torch.bool),
        layer_maps={"stem": maps[:, :, ::2, ::2] * 7, "head": maps[:, :, ::4, ::4] * 0.01},
        photos=photos,
    )


def corner(batch: int = 1, targets: int = 1, size: int = 16) -> np.ndarray:
    """Heat in the upper left quarter."""
    heat = np.zeros((batch, targets, size, size))
    heat[..., : size // 2, : size // 2] = 1
    return heat


def grey(width: int, height: int) -> np.ndarray:
    return np.full((height, width, 3), 100, np.uint8)


def test_overlay_has_the_photos_own_resolution_and_place() -> None:
    photos = [Image.fromarray(grey(320, 100)), Image.fromarray(grey(30, 50))]
    large, small = explanation(corner(2, 3)).overlay(photos)
    assert large.shape == (3, 100, 320, 3) and small.shape == (3, 50, 30, 3)
    light = large[0].mean(-1)
    assert light[:40, :140].min() > light[60:, 180:].max() + BRIGHT
    assert np.ptp(light[60:, 180:]) == 0  # cold: the dimmed photo


def test_heat_lies_in_its_box_and_tall_photos_are_drawn_whole() -> None:
    picture = overlay(grey(100, 600), np.ones((8, 8), np.float32), box=(20, 300, 80, 560))
    hot = picture[430, 50]
    assert (picture[300:560, 20:80] == hot).all()
    assert (picture[:300] == picture[0, 0]).all() and (picture[560:] == picture[0, 0]).all()
    assert (hot != picture[0, 0]).any()


def test_unnormalised_maps_are_shown_from_least_to_greatest() -> None:
    raw = explanation(corner() * 30 - 10).overlay(grey(16, 16))[0]
    assert np.array_equal(raw, explanation(corner()).overlay(grey(16, 16))[0])


def test_photos_are_kept_only_when_given() -> None:
    bare = explanation(corner())
    with pytest.raises(ValueError, match="expected images, got none"):
        bare.overlay()
    kept = bare.with_photos(torch.from_numpy(grey(16, 16))[None])
    assert kept.heatmaps is bare.heatmaps and bare.photos == ()
    assert np.array_equal(kept.overlay()[0], bare.overlay(grey(16, 16))[0])


def test_what_is_no_photo_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected 2 photos.*got 1"):
        as_photos([grey(4, 4)], 2)
    with pytest.raises(ValueError, match="normalised inputs cannot be shown"):
        as_photos(torch.zeros(1, 3, 8, 8), 1)
    layered = torch.zeros(1, 1, 3, 8, 8).numpy()
    with pytest.raises(ValueError, match="fuse='none'"):
        explanation(corner()).__class__(
            **{**vars(explanation(corner())), "heatmaps": torch.from_numpy(layered)}
        ).overlay(grey(8, 8))


def test_figure_shows_input_layers_and_targets() -> None:
    pytest.importorskip("matplotlib")
    found = explanation(corner(2, 2), scores=0.25)
    photos = [Image.fromarray(grey(160, 320)), grey(400, 200)]
    classes = ClassTable(names=("Lisbon", "Porto", "Faro", "Évora", "Braga"))
    figure = found.figure(photos, classes=classes, captions=["first $x_1.jpg", "b"])
    tiles = 1 + 2 + 2
    assert len(figure.axes) == 2 * (tiles + 1)
    texts = [text.get_text() for text in figure.texts]
    titles, subtitles = texts[::2], texts[1::2]
    assert titles == ["input", "stem", "head", "Lisbon", "Porto", *titles[5:8], "Faro", "Évora"]
    row = ["first $x_1.jpg", "8 × 8", "4 × 4", "25.0%", "25.0%"]
    assert subtitles[:5] == row and subtitles[5] == "b"
    shown = [axes.images[0].get_array() for axes in figure.axes]
    heat = found.heatmaps[0, 1].numpy()
    assert np.array_equal(shown[4], overlay(np.asarray(photos[0]), heat))
    # A layer's map has the photo's proportions and its own scale, however faint it is.
    assert shown[1].shape == shown[2].shape == (320, 160, 3)
    assert (shown[2][:100, :50] == shown[1][:100, :50]).all() and np.ptp(shown[2]) > 100
    picture = np.asarray(Image.open(io.BytesIO(figure._repr_png_())).convert("L"))
    assert (picture.min(0) < 250).mean() > 0.9 and (picture.min(1) < 250).mean() > 0.9


def test_figure_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="expected 1 captions, one per photo, got 2"):
        explanation(corner()).figure(grey(16, 16), captions=["a", "b"])
    with pytest.raises(ValueError, match="expected layers >= 0, got -1"):
        explanation(corner()).figure(grey(16, 16), layers=-1)


def test_figure_without_matplotlib_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtra, match=r"combicam\[figures\]"):
        explanation(corner()).figure(grey(16, 16))


def test_layers_that_are_drawn() -> None:
    def maps(*sizes: int) -> dict[str, Tensor]:
        return {f"b{i}": torch.zeros(1, 1, size, size) for i, size in enumerate(sizes)}

    assert shown_layers(maps(8, 8, 4, 4, 2, 2), 4) == ["b1", "b3", "b5"]
    assert shown_layers(maps(32, 16, 8, 4, 2), 4) == ["b0", "b1", "b3", "b4"]
    assert shown_layers(maps(*[14] * 12), 4)[-1] == "b11"
    assert len(shown_layers(maps(*[14] * 12), 4)) == 4
    assert shown_layers({}, 4) == shown_layers(maps(4), 0) == []


def test_jupyter_shows_maps_and_with_photos_overlays() -> None:
    bare = explanation(corner(10, 2))
    html = bare._repr_html_()
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    assert len(pictures) == 8 * 2 and "and 2 more" in html and "class 3 · 90.0%" in html
    photos = bare.with_photos([grey(64, 32)] * 10)._repr_html_()
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', photos)
    assert len(pictures) == 8 * 3
    first, second = (np.asarray(Image.open(io.BytesIO(base64.b64decode(p)))) for p in pictures[:2])
    assert first.shape == second.shape == (180, 360, 3)
    assert (first == 100).all() and second[:80, :150].mean() > second[100:, 200:].mean() + BRIGHT
    assert "http" not in html + photos


def test_probabilities_for_people() -> None:
    cases = {0.93213: "93.2%", 0.99996: "> 99.9%", 1.0: "100.0%", 0.0: "0.0%", 1.1e-4: "1.1e-04"}
    assert {p: probability(p) for p in cases} == cases
    assert probability(-0.25) == "-25.0%"
