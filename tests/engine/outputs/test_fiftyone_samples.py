"""Runs as FiftyOne samples; FiftyOne itself is large, its tests run where it is installed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from combicam.cli import main
from combicam.engine.images.resize import resize
from combicam.engine.outputs.fiftyone_samples import _samples, fiftyone_samples, over_photo
from combicam.engine.run.config import RunConfig
from combicam.engine.run.open_run import open_run
from combicam.engine.runner import run_images
from combicam.export.classes.classes import ClassTable
from combicam.export.preprocess import Preprocess

INSTALLED = importlib.util.find_spec("fiftyone") is not None


@pytest.mark.parametrize("photo", [(300, 200), (120, 250), (64, 64)])
def test_heatmaps_lie_where_the_crop_was(photo: tuple[int, int]) -> None:
    width, height = photo
    preprocess = Preprocess((64, 64), resize="crop", crop_pct=0.8)
    across = np.linspace(0, 255, width, dtype=np.uint8)
    down = np.linspace(0, 255, height, dtype=np.uint8)
    pixels = np.stack(
        [
            np.broadcast_to(across, (height, width)),
            np.broadcast_to(down[:, None], (height, width)),
            np.full((height, width), 9, np.uint8),
        ],
        -1,
    ).copy()
    seen = resize(pixels, 1, photo, preprocess)
    for channel in (0, 1):
        whole = over_photo(seen[:, :, channel], photo, preprocess)
        assert abs(whole.shape[1] / whole.shape[0] - width / height) < 0.03
        image = Image.fromarray(pixels[:, :, channel])
        expected = np.asarray(image.resize(whole.shape[::-1]), np.int16)
        inside = over_photo(np.ones((64, 64), np.uint8), photo, preprocess) == 1
        assert inside.sum() == 64 * 64
        assert np.abs(whole.astype(np.int16) - expected)[inside].max() <= 6  # a cell or so
    grid = over_photo(np.ones((8, 8), np.uint8), photo, preprocess)
    assert grid.sum() == 64 and grid.size > 64
    squashed = Preprocess((64, 64), resize="squash")
    assert over_photo(seen[:, :, 0], photo, squashed).shape == (64, 64)


def test_names_are_of_the_class_that_has_them(tmp_path: Path, photos: Any, fake: Any) -> None:
    run = made(tmp_path, photos, fake)
    opened = open_run(run)
    shard = opened.shard(0)
    shard.targets[0] = shard.targets[0][::-1].copy()  # as if another class had been asked for
    stand_in: Any = SimpleNamespace(
        **dict.fromkeys(("Classification", "Heatmap", "GeoLocation", "Sample"), SimpleNamespace)
    )
    run_of_one = SimpleNamespace(
        shards=[0], shard=lambda _: shard, classes=opened.classes, preprocess=None
    )
    for row, sample in zip(np.flatnonzero(shard.ok), _samples(stand_in, run_of_one), strict=True):
        labels = [sample.prediction0.label, sample.prediction1.label]
        assert labels == ["abcde"[target] for target in shard.targets[row]]


def made(tmp_path: Path, photos: Any, fake: Any) -> Path:
    photos(tmp_path / "in", 10)[3].write_bytes(b"")
    classes = ClassTable(
        names=tuple("abcde"), latitudes=tuple(range(5)), longitudes=tuple(range(10, 15))
    )
    config = RunConfig(
        str(tmp_path / "in"),
        tmp_path / "run",
        "fake",  # type: ignore[arg-type]
        shard_size=4,
        progress=False,
    )
    run_images(config, fake(targets=2, classes=classes))
    return tmp_path / "run"


@pytest.mark.skipif(not INSTALLED, reason="needs FiftyOne")
def test_samples(tmp_path: Path, photos: Any, fake: Any) -> None:
    run = made(tmp_path, photos, fake)
    samples = list(fiftyone_samples(run))
    assert [s["run_id"] for s in samples] == [f"p{i:03d}.jpg" for i in range(10) if i != 3]
    assert all(Path(s.filepath).is_file() for s in samples)
    shard, row = open_run(run).find("p005.jpg")
    sample = samples[4]
    for k in range(2):
        assert np.array_equal(sample[f"heatmap{k}"].map, shard.heatmaps[row][k])
        assert sample[f"prediction{k}"].confidence == pytest.approx(shard.scores[row, k])
    best = int(shard.targets[row, 0])
    assert sample["prediction0"].label == "abcde"[best]
    assert sample["prediction1"].label == str(shard.targets[row, 1])
    assert sample["location"].point == [10 + best, best]
    written = json.loads((run / "run.json").read_text())
    written["explainer"]["preprocess"] = Preprocess((24, 32), resize="crop").to_dict()
    (run / "run.json").write_text(json.dumps(written))
    cropped = list(fiftyone_samples(run))[4]["heatmap0"].map
    assert cropped.size > 24 * 32 and cropped.sum() == shard.heatmaps[row][0].sum()


@pytest.mark.skipif(INSTALLED, reason="is about FiftyOne not being there")
def test_without_fiftyone(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"pip install 'combicam\[fiftyone\]'"):
        main(["convert", str(tmp_path), "--fiftyone", "name"])
