"""The inputs that people have, end to end: a row for every photo, and a word about every file."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fakes import configured
from PIL import Image

from combicam import cli
from combicam.commands.printing import summary_rows
from combicam.engine.run.open_run import open_run
from combicam.engine.runner import run_images
from combicam.errors import RunError


def encoded(kind: str, size: tuple[int, int] = (40, 30), seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 4, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize(size).save(file, kind)
    return file.getvalue()


def statuses(run: Path) -> dict[str, str]:
    table = open_run(run).table(["id", "status"])
    return dict(zip(*(table.column(name).to_pylist() for name in ("id", "status")), strict=True))


def heic() -> bytes:
    pytest.importorskip("pillow_heif").register_heif_opener()
    return encoded("HEIF")


def test_no_file_vanishes_unsaid(
    tmp_path: Path, fake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"IMG.HEIC": heic(), "photo": encoded("PNG"), "a.jpg": encoded("JPEG")}
    for name, data in {**files, "notes.txt": b"x", "clip.mp4": b"x", "b.mp4": b"x"}.items():
        path = tmp_path / "in" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    config = configured(tmp_path)
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "pillow_heif", None)
        summary = run_images(config, fake())
    assert statuses(config.output) == {"IMG.HEIC": "unsupported", "a.jpg": "ok", "photo": "ok"}
    assert summary.ignored == {".mp4": 2, ".txt": 1} and summary.failures == {"unsupported": 1}
    assert json.loads((config.output / "summary.json").read_text())["ignored"] == summary.ignored
    assert ("ignored", "3 (2 .mp4, 1 .txt)") in summary_rows(summary)
    again = run_images(configured(tmp_path, retry=("decode_error,missing",)), fake())
    assert again.failures == {"unsupported": 1} and again.ignored == summary.ignored
    assert not run_images(configured(tmp_path, retry="unsupported"), fake()).failures
    with pytest.raises(RunError, match=r"other \(exclude: null there, \[.*\] now\)"):
        run_images(configured(tmp_path, exclude=("*.jpg",)), fake())


def test_nothing_but_other_files_says_which(tmp_path: Path, fake: Any) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "clip.mp4").touch()
    with pytest.raises(ValueError, match=r"got none, but 1 \(1 .mp4\) other files; folders"):
        run_images(configured(tmp_path), fake())


def test_retried_statuses_are_chosen(tmp_path: Path, fake: Any) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "list.txt").write_text("in/bad.jpg\nin/gone.jpg\nin/good.jpg\n")
    for name, data in {"bad.jpg": b"x", "good.jpg": encoded("JPEG")}.items():
        (tmp_path / "in" / name).write_bytes(data)
    options = {"source": "list.txt"}
    first = run_images(configured(tmp_path, **options), fake())
    assert first.failures == {"decode_error": 1, "missing": 1}
    for name in ("bad.jpg", "gone.jpg"):
        (tmp_path / "in" / name).write_bytes(encoded("JPEG"))
    second = run_images(configured(tmp_path, **options, retry="missing"), fake())
    assert second.failures == {"decode_error": 1} and second.new_images == 1
    assert not run_images(configured(tmp_path, **options, retry_failed=True), fake()).failures
    with pytest.raises(ValueError, match="expected retry as some of decode_error, too_large"):
        configured(tmp_path, retry=("ok",))


def test_truncated_photos_are_taken_on_request(tmp_path: Path, fake: Any) -> None:
    (tmp_path / "in").mkdir()
    whole = encoded("JPEG", (400, 300))
    (tmp_path / "in" / "a.jpg").write_bytes(whole)
    (tmp_path / "in" / "b.jpg").write_bytes(whole[:-200])
    run_images(configured(tmp_path), fake())
    assert statuses(tmp_path / "run") == {"a.jpg": "ok", "b.jpg": "decode_error"}
    assert "truncated" not in open_run(tmp_path / "run").dataset.schema.names
    run_images(configured(tmp_path, output="tolerant", tolerant=True), fake())
    rows = open_run(tmp_path / "tolerant").table(["status", "truncated"]).to_pylist()
    assert [tuple(row.values()) for row in rows] == [("ok", False), ("ok", True)]
    with pytest.raises(RunError, match="tolerant"):
        run_images(configured(tmp_path, tolerant=True), fake())


def test_the_same_photos_in_every_container(tmp_path: Path, fake: Any) -> None:
    photos = [encoded("JPEG", seed=seed) for seed in range(20)]
    (tmp_path / "folder").mkdir()
    for i, data in enumerate(photos):
        (tmp_path / "folder" / f"{i:02d}.jpg").write_bytes(data)
    for name, mode in (("t.tar", "w"), ("t.tar.gz", "w:gz")):
        with tarfile.open(tmp_path / name, mode) as tar:  # type: ignore[call-overload]
            tar.add(tmp_path / "folder", "")
    image = [{"bytes": data, "path": None} for data in photos]
    pq.write_table(pa.table({"image": image}), tmp_path / "t.parquet", row_group_size=7)
    with pa.OSFile(str(tmp_path / "t.arrow"), "w") as sink:
        table = pa.table({"image": image})
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table, 6)
    maps = []
    for source in ("folder", "t.tar", "t.tar.gz", "t.parquet", "t.arrow"):
        config = configured(tmp_path, source, f"run-{source}", shard_size=20)
        assert not run_images(config, fake()).failures
        maps.append(open_run(config.output).shard(0).heatmaps)
    assert all(np.array_equal(found, maps[0]) for found in maps) and maps[0].any()


def test_options_of_inputs_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.main(["run", "--help"])
    text = capsys.readouterr().out
    for option in ("--include", "--exclude", "--ext", "--tolerant", "--retry "):
        assert option in text
