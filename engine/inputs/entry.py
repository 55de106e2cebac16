"""Describe one input of a run, and read its bytes."""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote_to_bytes

from combicam.engine.storage.paths import is_client_error, is_remote, location, read_range
from combicam.errors import RunError, first_line


@dataclass(frozen=True, slots=True)
class Entry:
    """One input.

    Attributes:
        id: unique in the run; the relative path, or ``tar::member``.
        uri: absolute path of the file or tar; ``file://…`` when its name is not UTF-8; or
            ``s3://bucket/key``.
        offset, size: where a tar's member lies, bytes; None for a whole file.
        true_lat, true_lon: where the photo was taken, degrees; None where that is not known.
    """

    id: str
    uri: str
    offset: int | None = None
    size: int | None = None
    true_lat: float | None = None
    true_lon: float | None = None

    def read(self) -> bytes:
        """The encoded photo.

        Raises:
            OSError: nothing there, no regular file, or a tar shorter than when it was indexed.
            RunError: its object store does not answer: the next photo would fail, too.
        """
        if "\0" in self.uri:  # which no file system has, and Python refuses with a ValueError
            raise OSError(f"expected a name without a NUL, got {self.uri!r}")
        path = uri_path(self.uri)
        if is_remote(path):
            return self._fetched(path)
        # Opening a named pipe would wait forever.
        if not stat.S_ISREG(path.stat().st_mode):
            raise OSError(f"expected a regular file, got another kind: {self.uri}")
        if self.offset is None or self.size is None:
            return path.read_bytes()
        with path.open("rb") as file:
            file.seek(self.offset)
            return self._whole(file.read(self.size))

    def _fetched(self, path: Path) -> bytes:
        try:
            if self.offset is None or self.size is None:
                return read_range(path)
            if self.size == 0:  # no range is empty
                return b""
            return self._whole(read_range(path, self.offset, self.offset + self.size))
        except FileNotFoundError as error:
            raise FileNotFoundError(errno.ENOENT, "no such object", self.uri) from error
        except (ConnectionError, TimeoutError) as error:
            raise _away(self.uri, error) from error
        except Exception as error:
            if not is_client_error(error):
                raise
            raise _away(self.uri, error) from error

    def _whole(self, data: bytes) -> bytes:
        if len(data) != self.size:
            raise OSError(
                f"expected {self.size} bytes at {self.offset} of {self.uri}, got {len(data)}"
            )
        return data


def _away(uri: str, error: Exception) -> RunError:
    return RunError(
        f"read: expected the store of {uri} to answer, got {first_line(error)}; run again: what is "
        "committed is kept"
    )


def printable(name: str) -> str:
    r"""A file name as valid UTF-8; bytes that are not become ``\xNN``."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def path_uri(path: Path) -> str:
    """The absolute path as text that :func:`uri_path` turns back, whatever its bytes."""
    if is_remote(path):
        return str(path)
    path = path.absolute()
    name = str(path)
    return name if printable(name) == name else path.as_uri()


def uri_path(uri: str) -> Path:
    """The inverse of :func:`path_uri`; also of ``file://localhost/…``.

    Raises:
        ValueError: of a store that is not supported.
    """
    if not uri.startswith("file://"):
        return location(uri)
    return Path(
        os.fsdecode(unquote_to_bytes(uri.removeprefix("file://").removeprefix("localhost")))
    )
