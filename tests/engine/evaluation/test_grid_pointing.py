"""The grid pointing game: cases worked by hand, mosaics, and a network that cannot be wrong."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from combicam import EvaluateConfig, ModelConfig, cli
from combicam.engine.evaluation.evaluate import evaluate
from combicam.engine.evaluation.grid_pointing import (
    Candidate,
    assemble,
    draw_mosaics,
    grid_pointing,
)


def candidate(number: int, target: int, size: tuple[int, int] = (2, 3)) -> Candidate:
    return Candidate(f"p{number}", target, 0.95, np.full((*size, 3), number, np.uint8))


def test_worked_by_hand() -> None:
    maps = torch.zeros(1, 4, 4, 6)
    maps[0, 0, 0, 0] = 3  # cell 0: all of it
    maps[0, 1, 1, 5], maps[0, 1, 2, 0] = 1, 3  # a quarter in cell 1; the maximum in cell 2
    maps[0, 2, 3, 2], maps[0, 2, 0, 0] = 2, 2  # a half; of equal maxima the first: cell 0
    maps[0, 3] = 7  # constant
    energy, hit = grid_pointing(maps, 2)
    np.testing.assert_allclose(energy[0], [1, 0.25, 0.5, np.nan])
    np.testing.assert_allclose(hit[0], [1, 0, 0, np.nan])


def test_random_maps_score_by_chance() -> None:
    maps = torch.rand(200, 9, 12, 12, generator=torch.Generator().manual_seed(0))
    energy, hit = grid_pointing(maps, 3)
    assert abs(float(energy.mean()) - 1 / 9) < 1e-3 and abs(float(hit.mean()) - 1 / 9) < 0.02


@pytest.mark.parametrize("shape", [(1, 3, 4, 4), (1, 4, 5, 4), (1, 4, 4, 3)])
def test_maps_that_do_not_fit(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected 4 maps of a size that 2 divides"):
        grid_pointing(torch.rand(shape), 2)


def test_mosaics_have_distinct_classes_of_one_size_and_use_an_image_once() -> None:
    candidates = [candidate(i, i % 5) for i in range(40)]
    candidates += [candidate(40 + i, i % 5, (3, 3)) for i in range(7)]
    drawn = draw_mosaics(candidates, 2, 100)
    assert len(drawn) >= 9
    for mosaic in drawn:
        assert len({c.target for c in mosaic}) == 4
        assert len({c.pixels.shape for c in mosaic}) == 1
    used = [c.id for mosaic in drawn for c in mosaic]
    assert len(used) == len(set(used))
    again = draw_mosaics(candidates[::-1], 2, 100)
    assert [[c.id for c in m] for m in again] == [[c.id for c in m] for m in drawn]
    assert draw_mosaics(candidates, 2, 100, seed=1) != drawn
    assert draw_mosaics(candidates, 2, 3) == drawn[:3]
    assert draw_mosaics([candidate(i, 0) for i in range(9)], 2, 5) == []


def test_cells_lie_row_by_row() -> None:
    whole = assemble([[candidate(i, i) for i in range(4)]], 2)
    assert whole.shape == (1, 4, 6, 3)
    assert whole[0, ::2, ::3, 0].tolist() == [[0, 1], [2, 3]]


# Its class is the colour: the logit of a class reads the pixels of that colour alone.
NETWORK = """
import torch
from torch import nn
from combicam import LoadedModel, Preprocess

def load():
    conv = nn.Conv2d(3, 3, 1, bias=False)
    conv.weight.data = 20 * torch.eye(3)[:, :, None, None]
    last = nn.Linear(3, 3, bias=False)
    last.weight.data = torch.eye(3)
    module = nn.Sequential(conv, nn.ReLU(), nn.AdaptiveMaxPool2d(4), nn.AdaptiveAvgPool2d(1),
                           nn.Flatten(), last)
    return LoadedModel(module.eval(), Preprocess((16, 16), (0.0,) * 3, (1.0,) * 3), "colours")
"""


@pytest.fixture
def colours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "network_of_colours.py").write_text(NETWORK)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    (tmp_path / "photos").mkdir()
    for i in range(9):
        pixels = np.zeros((16, 16, 3), np.uint8)
        pixels[4:12, 4:12, i % 3] = 250
        Image.fromarray(pixels).save(tmp_path / "photos" / f"p{i}.png")
    return tmp_path


def test_too_few_classes_make_no_mosaic(colours: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos, out = str(colours / "photos"), str(colours / "out")
    model = ["-m", "network_of_colours:load", "--layers", "last"]
    cli.main(["evaluate", photos, *model, "-o", out, "--grid", "2"])
    assert "0 of 2 x 2 images with p >= 0.9" in capsys.readouterr().out
    assert json.loads((colours / "out" / "evaluation.json").read_text())["mosaics"] == []


@pytest.mark.long
def test_the_command_plays_it(
    colours: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Four classes: black is the fourth, which nothing in a mosaic shows.
    text = NETWORK.replace("last = nn.Linear(3, 3, bias=False)", "last = nn.Linear(3, 4)").replace(
        "last.weight.data = torch.eye(3)",
        "last.weight.data = torch.tensor([[1.,0,0],[0,1,0],[0,0,1],[.9,.9,0]])\n"
        "    last.bias.data.zero_()",
    )
    (colours / "network_of_colours.py").write_text(text)
    sys.modules.pop("network_of_colours", None)
    yellow = np.zeros((16, 16, 3), np.uint8)
    yellow[4:12, 4:12, :2] = 250
    for i in range(3):
        Image.fromarray(yellow).save(colours / "photos" / f"y{i}.png")
    config = EvaluateConfig(
        str(colours / "photos"),
        ModelConfig("network_of_colours:load"),
        colours / "out",
        methods=("gradcam", "hirescam"),
        layers=("last",),
        grid=2,
        grid_confidence=0.5,
        mosaics=2,
        removal=False,
        batch_size=5,
        progress=False,
    )
    found = evaluate(config).summary
    assert found["settings"]["grid"] == 2 and len(found["mosaics"]) == 2
    for mosaic in found["mosaics"]:
        assert sorted(mosaic["targets"]) == [0, 1, 2, 3] and len(mosaic["images"]) == 4
        assert min(mosaic["confidences"]) > 0.5
    for name in ("gradcam_last", "hirescam_last"):
        energy = found["maps"][name]["grid_energy"]
        assert energy["map"]["images"] == 2
        # Red, green and yellow share colours; blue is alone in its cell.
        assert 0.6 < energy["map"]["mean"] < 1 and energy["map"]["mean"] > energy["random"]["mean"]
        assert abs(energy["edges"]["mean"] - 0.25) < 0.02
    assert "minus_gradcam_last" in found["maps"]["hirescam_last"]["grid_maximum"]


def test_images_of_several_shapes_have_mosaics_of_their_own(
    colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = NETWORK.replace("(1.0,) * 3)", "(1.0,) * 3, resize='short-side', side_step=16)").replace(
        "last = nn.Linear(3, 3, bias=False)", "last = nn.Linear(3, 4)"
    )
    text = text.replace(
        "torch.eye(3)\n    module", "torch.tensor([[1.,0,0],[0,1,0],[0,0,1],[.9,.9,0]])\n    module"
    )
    (colours / "network_of_colours.py").write_text(text)
    sys.modules.pop("network_of_colours", None)
    for file in (colours / "photos").iterdir():
        file.unlink()
    for size in ((16, 16), (32, 16)):
        for k, colour in enumerate([(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0)]):
            Image.new("RGB", size, colour).save(colours / "photos" / f"{size[0]}-{k}.png")
    config = EvaluateConfig(
        str(colours / "photos"),
        ModelConfig("network_of_colours:load"),
        colours / "out",
        layers=("last",),
        grid=2,
        grid_confidence=0.3,
        removal=False,
        progress=False,
    )
    shapes = [
        {name.partition("-")[0] for name in mosaic["images"]}
        for mosaic in evaluate(config).summary["mosaics"]
    ]
    assert sorted(shapes, key=str) == [{"16"}, {"32"}]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"grid": 1}, "grid >= 2, or 0 to skip it, got 1"),
        ({"grid": -2}, "grid >= 2"),
        ({"grid_confidence": 1.0}, r"grid_confidence in \[0, 1\), got 1.0"),
        ({"mosaics": 0}, "mosaics >= 1, got 0"),
    ],
)
def test_settings_that_cannot_be(values: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EvaluateConfig("photos", ModelConfig("demo"), **values)  # type: ignore[arg-type]
