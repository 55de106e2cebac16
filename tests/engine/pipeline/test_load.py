"""Who decoded a photo is part of its row, and of nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from combicam.engine.images import jpeg as fast_jpeg
from combicam.engine.images.decode import DecodeConfig
from combicam.engine.run.config import RunConfig
from combicam.engine.runner import run_images
from combicam.errors import RunError


def explained(tmp_path: Path, fake: Any, output: str, decode: DecodeConfig) -> Any:
    """The rows of a run over ``in``."""
    config = RunConfig(
        str(tmp_path / "in"),
        tmp_path / output,
        "fake",
        decode=decode,
        batch_size=4,
        workers=2,
        progress=False,
    )
    run_images(config, fake())
    return pq.read_table(tmp_path / output / "shards" / "00000.parquet")


@pytest.fixture
def mixed(tmp_path: Path, photos: Any) -> list[Path]:
    """JPEG, PNG, CMYK, nothing, cut off, JPEG."""
    paths = photos(tmp_path / "in", 6)
    Image.open(paths[1]).save(paths[1].open("wb"), "PNG")
    Image.open(paths[2]).convert("CMYK").save(paths[2])
    paths[3].write_bytes(b"")
    paths[4].write_bytes(paths[4].read_bytes()[:-150])
    return paths


def test_rows_say_who_decoded(tmp_path: Path, mixed: list[Path], fake: Any) -> None:
    table = explained(tmp_path, fake, "run", DecodeConfig())
    by = ["simplejpeg", "pillow", "pillow", None, None, "simplejpeg"]
    assert table["decoder"].to_pylist() == by
    assert table["status"].to_pylist() == ["ok"] * 3 + ["decode_error"] * 2 + ["ok"]


@pytest.mark.parametrize("how", ["asked for", "not installed"])
def test_rows_do_not_depend_on_the_decoder(
    how: str, tmp_path: Path, mixed: list[Path], fake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = explained(tmp_path, fake, "fast", DecodeConfig())
    if how == "not installed":
        monkeypatch.setattr(fast_jpeg, "simplejpeg", None)
    slow = explained(
        tmp_path, fake, "slow", DecodeConfig("pillow" if how == "asked for" else "auto")
    )
    assert set(slow["decoder"].to_pylist()) == {"pillow", None}
    assert slow.drop(["decoder"]).equals(fast.drop(["decoder"]))


def test_a_run_may_go_on_with_another_decoder_but_not_at_another_scale(
    tmp_path: Path, mixed: list[Path], fake: Any
) -> None:
    explained(tmp_path, fake, "run", DecodeConfig())
    explained(tmp_path, fake, "run", DecodeConfig("pillow"))
    with pytest.raises(RunError, match="fast_scale"):
        explained(tmp_path, fake, "run", DecodeConfig(fast_scale=True))
