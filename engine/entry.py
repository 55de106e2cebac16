"""``Entry``: one input of a run, and how its bytes are read."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote_to_bytes


@dataclass(frozen=True, slots=True)
class Entry:
    """One input.

    Attributes:
        id: unique in the run; the relative path, or ``tar::member``.
        uri: absolute path of the file or tar; ``file://…`` when its name is not UTF-8.
        offset, size: where a tar's member lies, bytes; None for a whole file.
    """

    id: str
    uri: str
    offset: int | None = None
    size: int | None = None

    def read(self) -> bytes:
        """The encoded photo.

        Raises:
            OSError: nothing there, no regular file, or a tar shorter than when it was indexed.
        """
        path = uri_path(self.uri)
        # Opening a named pipe would wait forever.
        if not stat.S_ISREG(path.stat().st_mode):
            raise OSError(f"expected a regular file, got another kind: {self.uri}")
        if self.offset is None or self.size is None:
            return path.read_bytes()
        with path.open("rb") as file:
            file.seek(self.offset)
            data = file.read(self.size)
        if len(data) != self.size:
            raise OSError(
                f"expected {self.size} bytes at {self.offset} of {self.uri}, got {len(data)}"
            )
        return data


def printable(name: str) -> str:
    r"""A file name as valid UTF-8; bytes that are not become ``\xNN``."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def path_uri(path: Path) -> str:
    """The absolute path as text that :func:`uri_path` turns back, whatever its bytes."""
    path = path.absolute()
    name = str(path)
    return name if printable(name) == name else path.as_uri()


def uri_path(uri: str) -> Path:
    """The inverse of :func:`path_uri`; also of ``file://localhost/…``."""
    if not uri.startswith("file://"):
        return Path(uri)
    return Path(
        os.fsdecode(unquote_to_bytes(uri.removeprefix("file://").removeprefix("localhost")))
    )
