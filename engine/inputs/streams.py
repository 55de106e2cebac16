"""Read members of compressed tars, which can only be read from their beginning."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections import deque
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import IO, Any

import pyarrow as pa

from combicam.engine.storage.paths import is_remote

TAR = ".tar"
_CODECS = {"gz": "gz", "tgz": "gz", "zst": "zst", "tzst": "zst", "bz2": "bz2", "tbz2": "bz2"}
_CODECS |= {"xz": "xz", "txz": "xz"}
_SHORT = (".tgz", ".tzst", ".tbz2", ".txz")
_LONG = (".tar.gz", ".tar.zst", ".tar.bz2", ".tar.xz")
# What damaged files raise, besides OSError.
DAMAGED = (EOFError, zlib.error, lzma.LZMAError, pa.ArrowException)
_OPEN_FILES = 8
_CHUNK, _REMEMBERED = 2**20, 64 * 2**20


def is_tar(name: str) -> bool:
    """Whether a file is a tar by its name, compressed or not."""
    return name.lower().endswith((TAR, *_SHORT, *_LONG))


def is_compressed(name: str) -> bool:
    """Whether a file is a compressed tar by its name."""
    return name.lower().endswith((*_SHORT, *_LONG))


def open_decompressed(file: IO[bytes], name: str) -> Any:
    """The content of a tar, as a binary file; seeking back may start again from its beginning.

    Args:
        file: open for reading, and seekable.
        name: of the file, whose suffix tells its compression.
    """
    codec = _CODECS.get(name.lower().rpartition(".")[2])
    if codec == "gz":
        return gzip.GzipFile(fileobj=file)
    if codec == "bz2":
        return bz2.BZ2File(file)
    if codec == "xz":
        return lzma.LZMAFile(file)
    if codec == "zst":
        return io.BufferedReader(_Zstandard(file), _CHUNK)
    return io.BufferedReader(file) if isinstance(file, io.RawIOBase) else file


class _Zstandard(io.RawIOBase):
    """A Zstandard file, decompressed by Arrow."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__()
        self._file = file
        self._begin()

    def _begin(self) -> None:
        self._file.seek(0)
        self._stream = pa.CompressedInputStream(pa.PythonFile(self._file, "r"), "zstd")
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_CUR:
            offset += self._at
        elif whence != io.SEEK_SET:
            raise io.UnsupportedOperation("the size of a compressed file is not known")
        if offset < self._at:
            self._begin()
        while self._at < offset and self.read(min(_CHUNK, offset - self._at)):
            pass
        return self._at


class MemberStream:
    """Reads a compressed tar at offsets that mostly grow, from several threads.

    The last megabytes are remembered, because threads ask in nearly the tar's order; an earlier
    offset starts again from the beginning.

    Args:
        path: of the tar.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = Lock()
        self._begin()

    def _begin(self) -> None:
        self._file = open_decompressed(self._path.open("rb"), self._path.name)
        self._start = self._end = 0
        self._chunks: deque[bytes] = deque()

    def read(self, offset: int, size: int) -> bytes:
        """Read a range of the decompressed bytes; fewer at the end.

        Raises:
            OSError: the file is damaged.
        """
        try:
            with self._lock:
                return self._read(offset, size)
        except DAMAGED as error:
            raise OSError(f"{self._path}: {error}") from error

    def _read(self, offset: int, size: int) -> bytes:
        if offset < self._start:
            self._begin()
        while self._end < offset + size and (chunk := self._file.read(_CHUNK)):
            self._chunks.append(chunk)
            self._end += len(chunk)
            while self._end - self._start > _REMEMBERED:
                if self._start + len(self._chunks[0]) > offset:
                    break
                self._start += len(self._chunks.popleft())
        parts, at = [], self._start
        for chunk in self._chunks:
            if at < offset + size and at + len(chunk) > offset:
                parts.append(chunk[max(0, offset - at) : offset + size - at])
            at += len(chunk)
        return b"".join(parts)


def read_member(path: Path, offset: int, size: int) -> bytes:
    """Read a range of a compressed tar's content; fewer bytes at its end.

    Raises:
        OSError: a missing or damaged file.
    """
    status = None if is_remote(path) else path.stat()
    version = None if status is None else (status.st_mtime_ns, status.st_size)
    return _stream(path, version).read(offset, size)


@lru_cache(_OPEN_FILES)
def _stream(path: Path, version: tuple[int, int] | None) -> MemberStream:
    return MemberStream(path)
