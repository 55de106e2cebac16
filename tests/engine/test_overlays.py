"""``RUN/overlays``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from combicam.engine.config import RunConfig
from combicam.engine.runner import run_images
from combicam.export.classes import ClassTable


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
