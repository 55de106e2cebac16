"""What people have in their folders, end to end: a row for every file, neighbours unchanged."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from combicam.engine.run.config import RunConfig
from combicam.engine.runner import run_images
from combicam.errors import RunError

GOOD = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # by 90 degrees
    return encoded(Image.fromarray(GOOD), "JPEG", exif=exif)


def corpus() -> dict[str, tuple[bytes, str]]:
    """Name -> file, and the status of its row."""
    good = Image.fromarray(GOOD)
    jpeg, png = encoded(good, "JPEG"), encoded(good, "PNG")
    deep = Image.fromarray((GOOD[..., 0].astype(np.uint16) * 257).astype(np.uint16))
    bomb = bytearray(png)
    bomb[16:24] = (60_000).to_bytes(4, "big") * 2  # says the header, before anything is decoded
    bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4, "big")
    frames = [Image.fromarray(GOOD), Image.fromarray(255 - GOOD)]
    return {
        "empty.jpg": (b"", "decode_error"),
        "page.jpg": (b"<html><body>404</body></html>", "decode_error"),
        "header.jpg": (jpeg[:20], "decode_error"),
        "body.jpg": (jpeg[: len(jpeg) // 2], "decode_error"),
        "half.png": (png[: len(png) // 2], "decode_error"),
        "bomb.png": (bytes(bomb), "too_large"),
        "cmyk.jpg": (encoded(good.convert("CMYK"), "JPEG"), "ok"),
        "deep.png": (encoded(deep, "PNG"), "ok"),
        "alpha.png": (encoded(good.convert("RGBA"), "PNG"), "ok"),
        "palette.gif": (encoded(good.convert("P"), "GIF"), "ok"),
        "moving.gif": (encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), "ok"),
        "turned.jpg": (turned(), "ok"),
        "dot.png": (encoded(Image.new("RGB", (1, 1), (9, 8, 7)), "PNG"), "ok"),
        "long.png": (encoded(Image.new("RGB", (1, 20_000), (9, 8, 7)), "PNG"), "ok"),
        "other/cmyk.jpg": (jpeg, "ok"),  # a name that occurs twice, in two folders
        "gray.jpg": (encoded(good.convert("L"), "JPEG"), "ok"),
    }


def rows(run: Path) -> dict[str, dict[str, Any]]:
    shards = sorted((run / "shards").glob("*.parquet"))
    return {row["id"]: row for shard in shards for row in pq.read_table(shard).to_pylist()}


def configured(tmp_path: Path, source: str, output: str, **changes: Any) -> RunConfig:
    values = {"batch_size": 4, "shard_size": 7, "workers": 2, "progress": False} | changes
    return RunConfig(str(tmp_path / source), tmp_path / output, "fake", **values)  # type: ignore[arg-type]


def test_every_file_is_one_row_and_its_neighbours_stay(
    tmp_path: Path, photos: Any, fake: Any
) -> None:
    photos(tmp_path / "good", 9)
    photos(tmp_path / "in", 9)
    for name, (data, _) in corpus().items():
        path = tmp_path / "in" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    (tmp_path / "in" / "folder.jpg").mkdir()
    latin = os.fsencode(tmp_path / "in") + b"/caf\xe9.jpg"
    Path(os.fsdecode(latin)).write_bytes(corpus()["gray.jpg"][0])
    statuses = {name: status for name, (_, status) in corpus().items()}
    statuses |= {"folder.jpg": "missing", "caf\\xe9.jpg": "ok"}
    statuses |= {f"p{i:03d}.jpg": "ok" for i in range(9)}
    run_images(configured(tmp_path, "in", "run", max_pixels=10**8), fake())
    found = rows(tmp_path / "run")
    assert {name: row["status"] for name, row in found.items()} == statuses
    assert all((row["error"] is None) == (row["status"] == "ok") for row in found.values())
    assert "got 60000x60000" in found["bomb.png"]["error"]
    assert [found["turned.jpg"][side] for side in ("width", "height")] == [30, 40]
    assert [found["long.png"][side] for side in ("width", "height")] == [1, 20_000]
    run_images(configured(tmp_path, "good", "alone"), fake())
    for name, alone in rows(tmp_path / "alone").items():
        assert found[name] | {"uri": ""} == alone | {"uri": ""}


def test_members_of_a_tar_stay_in_it(tmp_path: Path, fake: Any) -> None:
    (tmp_path / "in").mkdir()
    with tarfile.open(tmp_path / "in" / "a.tar", "w") as tar:
        for name in ("../escape.jpg", "/etc/absolute.jpg", "ok.jpg"):
            info = tarfile.TarInfo(name)
            data = corpus()["turned.jpg"][0]
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    run_images(configured(tmp_path, "in", "run"), fake())
    found = rows(tmp_path / "run")
    assert {row["status"] for row in found.values()} == {"ok"} and len(found) == 3
    assert "a.tar::../escape.jpg" in found
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "run"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own; only root may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_and_one_that_is_read_only(
    tmp_path: Path, small_disk: Path, photos: Any, fake: Any
) -> None:
    photos(tmp_path / "in", 40, (320, 240))
    whole = configured(tmp_path, "in", "whole", heatmap_size=(96, 96))
    run_images(whole, fake())
    config = configured(tmp_path, "in", "disk/run", heatmap_size=(96, 96))
    with pytest.raises(RunError, match=r"No space left on device; free space"):
        run_images(config, fake())
    left = {p.name: p.read_bytes() for p in (config.output / "shards").glob("[!.]*.parquet")}
    assert left
    assert all((whole.output / "shards" / n).read_bytes() == data for n, data in left.items())
    for options in ("remount,ro", "remount,rw,size=64m"):
        subprocess.run(["mount", "-o", options, str(small_disk)], check=True)
        if "ro" in options:
            with pytest.raises(RunError, match="Read-only file system; free space or choose"):
                run_images(config, fake())
    assert run_images(config, fake()).images == 40
    for shard in (whole.output / "shards").glob("*.parquet"):
        assert (config.output / "shards" / shard.name).read_bytes() == shard.read_bytes()


def test_names_that_no_file_has_are_rows(tmp_path: Path, fake: Any) -> None:
    (tmp_path / "a.jpg").write_bytes(corpus()["turned.jpg"][0])
    (tmp_path / "list.txt").write_bytes(b"a\0b.jpg\n" + b"x" * 300 + b".jpg\na.jpg\n")
    run_images(configured(tmp_path, "list.txt", "run"), fake())
    found = list(rows(tmp_path / "run").values())
    assert [row["status"] for row in found] == ["missing", "missing", "ok"]
    assert "without a NUL" in found[0]["error"] and "name too long" in found[1]["error"]


def test_an_input_that_cannot_be_listed_is_no_full_disk(tmp_path: Path, fake: Any) -> None:
    with pytest.raises(RunError, match=r"list inputs: expected to read .*File name too long; make"):
        run_images(configured(tmp_path, "x" * 300, "run"), fake())
