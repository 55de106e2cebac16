"""Files read in few system calls are the files that are there now."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from combicam.engine.storage import local
from combicam.engine.storage.local import read_file, read_part


@pytest.mark.parametrize("size", [0, 1, 100_000])
def test_whole_files(tmp_path: Path, size: int) -> None:
    path = tmp_path / "x"
    path.write_bytes(os.urandom(size))
    assert read_file(str(path)) == path.read_bytes()


@pytest.mark.parametrize("size", [0, 3, 20])
def test_a_file_that_changes_meanwhile(
    tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"0123456789")
    monkeypatch.setattr(local, "_status", lambda name: SimpleNamespace(st_size=size))
    assert read_file(str(path)) == b"0123456789"


def test_parts(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"0123456789")
    assert read_part(str(path), 2, 3) == b"234"
    assert read_part(str(path), 8, 5) == b"89" and read_part(str(path), 20, 5) == b""
    with path.open("r+b") as file:  # in place: the same inode
        file.write(b"abc")
        file.truncate(4)
    assert read_part(str(path), 2, 3) == b"c3"


def test_short_answers_of_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, pread = tmp_path / "x", os.pread
    path.write_bytes(b"0123456789")

    def at_most_two(descriptor: int, size: int, offset: int) -> Any:
        return pread(descriptor, min(size, 2), offset)

    monkeypatch.setattr(os, "pread", at_most_two)
    assert read_part(str(path), 1, 7) == b"1234567"


def test_a_file_that_replaces_another(tmp_path: Path) -> None:
    path, other = tmp_path / "x", tmp_path / "y"
    path.write_bytes(b"old!")
    assert read_part(str(path), 0, 4) == b"old!"
    other.write_bytes(b"new!")
    other.replace(path)
    assert read_part(str(path), 0, 4) == b"new!"
    path.unlink()
    with pytest.raises(FileNotFoundError):
        read_part(str(path), 0, 4)


@pytest.mark.parametrize("read", [read_file, lambda name: read_part(name, 0, 1)])
def test_what_is_no_file(tmp_path: Path, read: Any) -> None:
    with pytest.raises(OSError, match="regular file"):
        read(str(tmp_path))
    with pytest.raises(FileNotFoundError):
        read(str(tmp_path / "none"))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_few_files_stay_open(tmp_path: Path) -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    local._opened.cache_clear()
    before = descriptors()
    for i in range(40):
        path = tmp_path / str(i)
        path.write_bytes(b"x")
        assert read_part(str(path), 0, 1) == b"x"
    assert before < descriptors() <= before + 16
    local._opened.cache_clear()
    assert descriptors() == before
