"""``RUN/overlays`` and ``combicam overlay``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from combicam import CellTable, LoadedModel, cli
from combicam.demo.planet import postcard
from combicam.engine.geo.location_target import TRUTH, LocationTarget
from combicam.engine.outputs.photo_overlay import PhotoPictures, _seen_pixels
from combicam.engine.run.config import RunConfig
from combicam.engine.runner import run_images
from combicam.export.classes.classes import ClassTable
from combicam.export.preprocess import Preprocess


def test_first_ok_rows_are_drawn_across_shards(tmp_path: Path, photos: Any, fake: Any) -> None:
    paths = photos(tmp_path / "in", 8)
    paths[1].write_bytes(b"")
    classes = ClassTable(tuple("abcde"), (48.8,) * 5, (-2.3,) * 5)
    config = RunConfig(
        str(tmp_path / "in"), tmp_path / "run", "fake", shard_size=3, overlays=4, progress=False
    )
    summary = run_images(config, fake(classes=classes))
    names = ["000000_p000.png", "000002_p002.png", "000003_p003.png", "000004_p004.png"]
    assert [p.name for p in summary.overlays] == names
    assert sorted(p.name for p in (tmp_path / "run" / "overlays").iterdir()) == names
    picture = np.asarray(Image.open(summary.overlays[0]))
    seen = np.asarray(Image.open(paths[0]).resize((32, 24), Image.Resampling.BILINEAR))
    windows = np.lib.stride_tricks.sliding_window_view(picture, seen.shape)
    assert np.abs(windows.astype(np.int16) - seen).max((-1, -2, -3)).min() <= 1
    assert not np.array_equal(picture, np.asarray(Image.open(summary.overlays[1])))


def test_overlays_can_be_drawn_later_from_small_heatmaps(
    tmp_path: Path, photos: Any, fake: Any
) -> None:
    paths = photos(tmp_path / "in", 4)
    values: dict[str, Any] = {"heatmap_size": (6, 8), "progress": False}
    run_images(RunConfig(str(tmp_path / "in"), tmp_path / "run", "fake", **values), fake())
    assert not (tmp_path / "run" / "overlays").exists()
    paths[0].unlink()
    again = RunConfig(str(tmp_path / "in"), tmp_path / "run", "fake", overlays=2, **values)
    summary = run_images(again, fake())
    assert [p.name for p in summary.overlays] == ["000001_p001.png", "000002_p002.png"]


def test_command_draws_each_photo_and_names_bad_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder, seed in zip(folders, (0, 1), strict=True):
        folder.mkdir()
        card = Image.fromarray(postcard(5, 4_000_000 + seed).image)
        card.resize((400, 300)).save(folder / "same.jpg", exif=turned_right())
    (tmp_path / "bad.jpg").write_bytes(b"no photo")
    paths = [str(folders[0] / "same.jpg"), str(tmp_path / "bad.jpg"), str(tmp_path / "gone.jpg")]
    arguments = ["overlay", *paths, str(folders[1] / "same.jpg"), "-o", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as ended:
        cli.main([*arguments, "-m", "demo", "--layers", "last", "--figure", "--resize", "crop"])
    assert ended.value.code == 1
    captured = capsys.readouterr()
    assert "bad.jpg: decode: expected an image" in captured.err
    assert "gone.jpg: No such file" in captured.err
    names = ["same-2.figure.png", "same-2.overlay.png", "same.figure.png", "same.overlay.png"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == names
    assert captured.out.count("same.jpg") == 4
    picture = np.asarray(Image.open(tmp_path / "out" / "same.overlay.png"))
    assert picture.shape == (400, 300, 3)  # upright
    left, top, right, bottom = _seen_pixels((300, 400), Preprocess((160, 160), resize="crop"))
    assert bottom - top == right - left == pytest.approx(300 * 0.875, abs=2)
    assert (picture[top, left:right] == 255).all() and (picture[top:bottom, left] == 255).all()
    assert not (picture[:top] == 255).all(-1).any(-1).all()


def test_command_explains_what_is_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(postcard(5, 4_000_000).image).save(tmp_path / "card.png")
    arguments = ["overlay", str(tmp_path / "card.png"), "-o", str(tmp_path), "-m", "demo"]
    cli.main([*arguments, "--layers", "last", "--explain", "3-not-7", "--colormap", "jet"])
    assert "3-not-7, " in capsys.readouterr().out
    assert (tmp_path / "card.overlay.png").exists()
    with pytest.raises(SystemExit):
        cli.main([*arguments, "--colormap", "rainbow"])
    assert "rainbow" in capsys.readouterr().err


def test_a_photo_alone_does_not_know_where_it_was_taken(demo_model: LoadedModel, fake: Any) -> None:
    cells = CellTable.from_classes(demo_model.classes)
    target = LocationTarget(("truth",), torch.tensor([TRUTH]), cells=cells)
    with pytest.raises(ValueError, match="name the location as LAT,LON"):
        PhotoPictures(fake(), target)


def test_the_whole_photo_is_seen_unless_it_is_cropped() -> None:
    whole = Preprocess((160, 160), resize="squash")
    assert _seen_pixels((640, 480), whole) == (0, 0, 640, 480)
    full = Preprocess((160, 160), resize="crop", crop_pct=1.0)
    assert _seen_pixels((640, 320), full) == (160, 0, 480, 320)
    thin = _seen_pixels((60_000, 1), full)
    assert thin[2] - thin[0] >= 1 and thin[3] == 1


def turned_right() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif
