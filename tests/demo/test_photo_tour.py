"""The demo on photographs: their licences, the whole workflow, and what its picture shows."""

from __future__ import annotations

import csv
import shlex
import sys
from pathlib import Path

import pytest
import skimage.data
import torch
from PIL import Image

from combicam import CamSpec, cli, make_explainer, open_run
from combicam.demo import photo_tour
from combicam.demo.photo_models import lite0
from combicam.demo.photo_tour import BEST, MODEL, by_hand, read_inputs
from combicam.demo.photographs import PHOTOGRAPHS, Photograph, write_photographs
from combicam.export.models.models import ModelConfig

# In the place of the real network, whose three graphs take long to trace.
STAND_IN = """
import torch
from torch import nn
import combicam

def build():
    torch.manual_seed(13)
    layers = [nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 8, 3, 2), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)]
    names = combicam.ClassTable(names=("tripod", "tabby", "espresso", "missile", "shoe"))
    head[-1].weight.data *= 100  # so that photographs have several answers
    preprocess = combicam.Preprocess((64, 64))
    return combicam.LoadedModel(nn.Sequential(*layers, *head), preprocess, "mine", names)
"""


@pytest.mark.parametrize("photo", PHOTOGRAPHS, ids=lambda photo: photo.name)
def test_licences_are_those_that_scikit_image_states(photo: Photograph) -> None:
    said = getattr(skimage.data, photo.name).__doc__
    assert photo.author in said and photo.license in said
    files = Path(skimage.data.__file__).parent.glob(f"{photo.name}.*")
    assert [file.suffix in (".png", ".jpg") for file in files] == [True]  # nothing is downloaded


def test_photographs_and_their_list(tmp_path: Path) -> None:
    write_photographs(tmp_path / "photos", tmp_path / "photos.csv")
    with (tmp_path / "photos.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == {
        "file": "camera.jpg",
        "shows": "a cameraman behind a tripod",
        "author": "Lav Varshney",
        "license": "CC0",
        "source": "skimage.data.camera",
    }
    for row in rows:
        image = Image.open(tmp_path / "photos" / row["file"])
        assert image.size == getattr(skimage.data, Path(row["file"]).stem)().shape[1::-1]


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stand_in_network.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(photo_tour, "MODEL", "stand_in_network:build")


@pytest.mark.long
@pytest.mark.usefixtures("stand_in")
def test_the_command_and_those_that_it_prints(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["demo", "--photos", "--no-progress"])
    out = Path("demo-photos")
    printed = capsys.readouterr().out
    for word in ("failures       0", str(out / "photos.png")):
        assert word in printed
    assert Image.open(out / "photos.png").format == "PNG"
    rows = open_run(out / "run").table(["id", "class_name", "status"]).to_pylist()
    assert {row["id"] for row in rows} == {photo.file for photo in PHOTOGRAPHS}
    for row in rows:
        assert row["status"] == "ok" and row["id"] in printed
        answer = next(line for line in printed.splitlines() if row["id"] in line)
        assert answer.split(maxsplit=1)[1].startswith(row["class_name"])
    assert len({row["class_name"] for row in rows}) == 3
    assert len(list((out / "run" / "overlays").iterdir())) == len(PHOTOGRAPHS)
    commands = [line.strip() for line in printed.splitlines() if line.startswith("  combicam ")]
    assert commands == by_hand(out) and "--spec combicam+" in commands[0]
    for command in commands:
        cli.main(shlex.split(command)[1:])
    assert len(list((out / "overlays").iterdir())) == 3
    assert (out / "report.html").stat().st_size > 10_000
    cli.main(["demo", "--photos", "--no-progress"])  # once more, over what is there


@pytest.mark.usefixtures("stand_in")
def test_the_two_demos_share_no_folder(tmp_path: Path) -> None:
    for name, held, given in (
        ("postcards.csv", "postcards", ["--photos"]),
        ("photos.csv", "photographs", []),
    ):
        folder = tmp_path / held
        folder.mkdir()
        (folder / name).touch()
        with pytest.raises(SystemExit, match=f"without the demo on {held}, got .*--output"):
            cli.main(["demo", *given, "-o", str(folder)])
        assert [path.name for path in folder.iterdir()] == [name]


@pytest.mark.parametrize("module", ["skimage.data", "efficientnet_lite_pytorch"])
def test_without_the_extra(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SystemExit, match=rf"{module} .*pip install 'combicam\[photos\]'"):
        cli.main(["demo", "--photos", "-o", str(tmp_path)])


def test_the_network_names_what_is_there(tmp_path: Path) -> None:
    write_photographs(tmp_path, tmp_path / "photos.csv")
    loaded = lite0()
    assert loaded.classes is not None
    pixels = torch.from_numpy(read_inputs(tmp_path, loaded.preprocess))
    with torch.no_grad():
        best = loaded.module(loaded.preprocess.normalize(pixels)).argmax(1).tolist()
    assert [loaded.classes.name(i) for i in best] == ["tripod", "tiger cat", "espresso", "missile"]


@pytest.mark.slow
def test_the_picture_shows_what_the_readme_says(tmp_path: Path) -> None:
    """The sum's maximum is at the cameraman's head, that of the gated sum at the tripod."""
    write_photographs(tmp_path, tmp_path / "photos.csv")
    places = {}
    for spec in (CamSpec(), BEST):
        explainer = make_explainer(ModelConfig(MODEL), spec)
        pixels = read_inputs(tmp_path, explainer.preprocess)
        heat = explainer(pixels).heatmaps[:, 0]
        places[spec] = [divmod(int(h.argmax()), h.shape[1]) for h in heat]
    (camera, _, coffee, _), (gated_camera, _, gated_coffee, _) = places.values()
    assert camera[0] < 60 and camera[1] < 90 and gated_camera[0] > 130
    assert min(coffee) > 210 and gated_coffee[0] < 120 and 50 < gated_coffee[1] < 160
