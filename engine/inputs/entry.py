"""Describe one input of a run, and read its bytes."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote_to_bytes

from combicam.engine.inputs.streams import is_compressed, read_member
from combicam.engine.inputs.table_images import read_image
from combicam.engine.storage.local import read_file, read_part
from combicam.engine.storage.paths import (
    is_client_error,
    is_remote,
    location,
    names_store,
    read_range,
)
from combicam.errors import RunError, first_line


@dataclass(frozen=True, slots=True)
class Entry:
    """One input.

    Attributes:
        id: unique in the run; the relative path, or ``tar::member``.
        uri: absolute path of the file, tar or table; ``file://…`` if its name is not UTF-8; or
            ``s3://bucket/key``; empty if a list's row has no path.
        offset, size: of a tar's member, bytes, in a compressed tar of its content; a row's number,
            and None, of an image in a table; both None for a whole file.
        true_lat, true_lon: where the photo was taken, degrees; None if unknown.
    """

    id: str
    uri: str
    offset: int | None = None
    size: int | None = None
    true_lat: float | None = None
    true_lon: float | None = None

    def read(self) -> bytes:
        """Read the encoded image.

        Raises:
            OSError: a missing file, not a regular file, a tar that was truncated since indexing, or
                an empty row.
            RunError: the object store does not answer, so that the next image would fail, too.
        """
        if not self.uri:
            raise OSError("expected a path, got none in the list")
        name = _local_name(self.uri)
        if name is not None and "\0" in name:  # no file system has it; Python raises ValueError
            raise OSError(f"expected a name without a NUL, got {self.uri!r}")
        if self.offset is not None and self.size is None:
            return self._in_table(uri_path(self.uri), self.offset)
        if name is None:
            return self._fetched(uri_path(self.uri))
        if self.offset is None or self.size is None:
            return read_file(name)
        if is_compressed(name):
            return self._whole(read_member(Path(name), self.offset, self.size))
        return self._whole(read_part(name, self.offset, self.size))

    def _fetched(self, path: Path) -> bytes:
        try:
            if self.offset is None or self.size is None:
                return read_range(path)
            if self.size == 0:  # ranges cannot be empty
                return b""
            if is_compressed(path.name):
                return self._whole(read_member(path, self.offset, self.size))
            return self._whole(read_range(path, self.offset, self.offset + self.size))
        except FileNotFoundError as error:
            raise FileNotFoundError(errno.ENOENT, "no such object", self.uri) from error
        except (ConnectionError, TimeoutError) as error:
            raise _away(self.uri, error) from error
        except Exception as error:
            if not is_client_error(error):
                raise
            raise _away(self.uri, error) from error

    def _in_table(self, path: Path, row: int) -> bytes:
        image = read_image(path, row)
        if image.data is not None:
            return image.data
        if image.path is None:
            raise OSError(f"expected an image in row {row} of {self.uri}, got none")
        named = uri_path(image.path)
        is_whole = is_remote(named) or named.is_absolute()
        return Entry(self.id, path_uri(named if is_whole else path.parent / image.path)).read()

    def _whole(self, data: bytes) -> bytes:
        if len(data) != self.size:
            raise OSError(
                f"expected {self.size} bytes at {self.offset} of {self.uri}, got {len(data)}"
            )
        return data


def _away(uri: str, error: Exception) -> RunError:
    return RunError(
        f"read: expected the store of {uri} to answer, got {first_line(error)}; run again: "
        "committed shards are kept"
    )


def printable(name: str) -> str:
    r"""A file name as valid UTF-8; bytes that are not become ``\xNN``."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def path_uri(path: Path) -> str:
    """The absolute path as text, whatever its bytes; :func:`uri_path` is the inverse."""
    if is_remote(path):
        return str(path)
    path = path.absolute()
    name = str(path)
    return name if printable(name) == name else path.as_uri()


def _local_name(uri: str) -> str | None:
    """What the system calls a file; None in an object store. Paths cost more than reading does."""
    if not uri.startswith("file://"):
        return None if names_store(uri) else uri
    return os.fsdecode(unquote_to_bytes(uri.removeprefix("file://").removeprefix("localhost")))


def uri_path(uri: str) -> Path:
    """The inverse of :func:`path_uri`; also of ``file://localhost/…``.

    Raises:
        ValueError: an unsupported store.
    """
    name = _local_name(uri)
    return location(uri) if name is None else Path(name)
