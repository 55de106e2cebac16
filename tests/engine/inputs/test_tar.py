"""Tars as people have them: linked, concatenated, doubled, compressed, with masks in them."""

from __future__ import annotations

import bz2
import gzip
import io
import logging
import lzma
import random
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from combicam.engine.inputs import streams
from combicam.engine.inputs.listing import list_inputs
from combicam.engine.inputs.selection import SelectionConfig, Tally


def tar(*members: tuple[str, bytes] | tuple[str, str, bytes]) -> bytes:
    """A tar of files (name, content) and links (name, where it leads, type)."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content, *kind in members:
            info = tarfile.TarInfo(name)
            if kind:
                info.type, info.linkname = kind[0], str(content)
                archive.addfile(info)
            else:
                assert isinstance(content, bytes)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as out:
        out.write(data)
    return sink.getvalue().to_pybytes()


COMPRESS = {"tar": bytes, "tar.gz": gzip.compress, "tgz": gzip.compress, "tar.zst": zstd}
COMPRESS |= {"tar.bz2": bz2.compress, "tar.xz": lzma.compress}


def contents(path: Path, data: bytes, **selection: Any) -> dict[str, bytes | None]:
    """Member -> its bytes; None if it cannot be read."""
    path.write_bytes(data)
    found: dict[str, bytes | None] = {}
    for entry in list_inputs(str(path), SelectionConfig(**selection)):
        try:
            found[entry.id.partition("::")[2]] = entry.read()
        except OSError:
            found[entry.id.partition("::")[2]] = None
    return found


def test_links_have_the_bytes_of_what_they_lead_to(tmp_path: Path) -> None:
    data = tar(
        ("d/a.jpg", b"a"),
        ("hard.jpg", "d/a.jpg", tarfile.LNKTYPE),
        ("d/soft.jpg", "a.jpg", tarfile.SYMTYPE),
        ("soft.jpg", "d/../d/a.jpg", tarfile.SYMTYPE),
        ("gone.jpg", "nowhere.jpg", tarfile.SYMTYPE),
        ("d", b""),
    )
    expected = {"d/a.jpg": b"a", "hard.jpg": b"a", "d/soft.jpg": b"a", "soft.jpg": b"a"}
    assert contents(tmp_path / "t.tar", data) == {**expected, "gone.jpg": None}


@pytest.mark.parametrize("blocks", [0, 1, 3000])
def test_concatenated_tars_are_read_to_their_end(tmp_path: Path, blocks: int) -> None:
    parts = [tar((f"{i}.jpg", b"%d" % i)) for i in range(3)]
    data = bytes(512 * blocks).join(parts)
    assert contents(tmp_path / "t.tar", data) == {"0.jpg": b"0", "1.jpg": b"1", "2.jpg": b"2"}
    assert contents(tmp_path / "t.tar.gz", gzip.compress(data)) == contents(
        tmp_path / "t.tar", data
    )


def test_what_is_no_tar_behind_the_end_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = tar(("a.jpg", b"a")) + b"a signature"
    assert contents(tmp_path / "t.tar", data) == {"a.jpg": b"a"}
    assert "left out what follows its end" in caplog.text


def test_of_doubled_members_the_last_counts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = tar(("a.jpg", b"old"), ("b.jpg", b"b"), ("a.jpg", b"new"), ("a.jpg", b"newest"))
    tally = Tally()
    (tmp_path / "t.tar").write_bytes(data)
    entries = list(list_inputs(str(tmp_path / "t.tar"), tally=tally))
    assert [(e.id, e.read()) for e in entries] == [
        ("t.tar::b.jpg", b"b"),
        ("t.tar::a.jpg", b"newest"),
    ]
    assert tally.ignored == {"repeated in a tar": 2}
    assert caplog.text.count("the last one counts") == 1


def test_masks_beside_photos_are_chosen_by_ext(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = tar(
        *((f"{i}.{kind}", kind.encode()) for i in range(2) for kind in ("jpg", "seg.png", "json"))
    )
    path = tmp_path / "t.tar"
    assert list(contents(path, data)) == ["0.jpg", "0.seg.png", "1.jpg", "1.seg.png"]
    assert caplog.text.count("choose with --ext jpg") == 1
    caplog.clear()
    assert list(contents(path, data, ext="jpg,png")) == ["0.jpg", "1.jpg"]
    assert list(contents(path, data, ext="seg.png")) == ["0.seg.png", "1.seg.png"]
    assert not caplog.text


def test_the_tars_of_img2dataset(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """jpg, json and txt a sample; and beside the tars statistics and metadata."""
    for shard in range(2):
        members = [
            (f"{shard:05d}{i:04d}.{kind}", kind.encode())
            for i in range(3)
            for kind in ("jpg", "json", "txt")
        ]
        (tmp_path / f"{shard:05d}.tar").write_bytes(tar(*members))
        (tmp_path / f"{shard:05d}.parquet").write_bytes(b"")
        (tmp_path / f"{shard:05d}_stats.json").write_text("{}")
    tally = Tally()
    entries = list(list_inputs(str(tmp_path), tally=tally))
    assert [entry.read() for entry in entries] == [b"jpg"] * 6
    assert entries[3].id == "00001.tar::000010000.jpg"
    assert tally.ignored == {".json": 8, ".txt": 6, ".parquet": 2}
    assert not caplog.text


def test_junk_in_tars(tmp_path: Path) -> None:
    data = tar(("a.jpg", b"a"), ("./._a.jpg", b""), ("__MACOSX/a.jpg", b""))
    assert contents(tmp_path / "t.tar", data) == {"a.jpg": b"a"}


def numbered(count: int, size: int = 3000) -> list[tuple[str, bytes]]:
    source = random.Random(0)
    return [(f"{i:04d}.jpg", source.randbytes(source.randrange(size))) for i in range(count)]


@pytest.mark.parametrize("suffix", COMPRESS)
def test_compressed_tars_in_any_order(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "_REMEMBERED", 20_000)
    monkeypatch.setattr(streams, "_CHUNK", 4096)
    members = numbered(60)
    path = tmp_path / f"t.{suffix}"
    path.write_bytes(COMPRESS[suffix](tar(*members)))
    entries = list(list_inputs(str(path)))
    assert [entry.id for entry in entries] == [f"t.{suffix}::{name}" for name, _ in members]
    expected = [data for _, data in members]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda entry: entry.read(), entries)) == expected
    order = random.Random(1).sample(range(60), 60)
    assert [entries[i].read() for i in order] == [expected[i] for i in order]


def test_a_compressed_tar_in_order_is_decompressed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "t.tar.gz"
    path.write_bytes(gzip.compress(tar(*numbered(300))))
    entries = list(list_inputs(str(path)))
    begun = 0
    begin = streams.MemberStream._begin

    def counted(self: Any) -> None:
        nonlocal begun
        begun += 1
        begin(self)

    monkeypatch.setattr(streams.MemberStream, "_begin", counted)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda entry: entry.read(), entries))
    assert begun == 1


def test_memory_of_a_stream_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_REMEMBERED", 10_000)
    monkeypatch.setattr(streams, "_CHUNK", 1000)
    path = tmp_path / "t.tar.gz"
    path.write_bytes(gzip.compress(tar(*numbered(200, 500))))
    stream = streams.MemberStream(path)
    for entry in list_inputs(str(path)):
        assert entry.offset is not None and entry.size is not None
        stream.read(entry.offset, entry.size)
        assert sum(map(len, stream._chunks)) <= 10_000 + 1000 + entry.size


@pytest.mark.parametrize("suffix", [name for name in COMPRESS if name != "tar"])
@pytest.mark.parametrize("damage", ["cut", "changed", "no such format"])
def test_damaged_compressed_tars(tmp_path: Path, suffix: str, damage: str) -> None:
    path, members = tmp_path / f"t.{suffix}", numbered(60)
    data = bytearray(COMPRESS[suffix](tar(*members)))
    path.write_bytes(data)
    last = list(list_inputs(str(path)))[-1]
    if damage == "cut":
        data = data[: len(data) // 2]
    elif damage == "changed":
        data[len(data) // 2 : len(data) // 2 + 64] = bytes(64)
    else:
        data = bytearray(b"<html>")
    path.write_bytes(data)
    if damage == "changed" and suffix == "tar.zst":
        return  # Arrow writes no checksum
    with pytest.raises(ValueError, match="to be a whole, compressed tar, got"):
        list(list_inputs(str(path)))
    with pytest.raises(OSError):
        last.read()


def test_a_replaced_tar_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "t.tar.gz"
    path.write_bytes(gzip.compress(tar(("a.jpg", b"old"))))
    (entry,) = list_inputs(str(path))
    assert entry.read() == b"old"
    path.write_bytes(gzip.compress(tar(("a.jpg", b"new"), ("b.jpg", b"b"))))
    assert entry.read() == b"new"


def test_tars_say_nothing_without_need(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert len(contents(tmp_path / "t.tar", tar(*numbered(5)))) == 5
    assert not caplog.text
