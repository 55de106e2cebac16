"""Read local files in the fewest system calls.

Every call releases the interpreter's lock and waits for it again, in each of many threads.
"""

from __future__ import annotations

import os
import stat
from functools import lru_cache

_OPEN_FILES = 16
_LEAST = 1 << 16  # bytes; some file systems know no sizes


def read_file(name: str) -> bytes:
    """A whole file.

    Raises:
        OSError: missing, or not a regular file.
    """
    size = _status(name).st_size
    file = os.open(name, os.O_RDONLY)
    try:
        data = os.read(file, max(size + 1, _LEAST))
        if len(data) == size:
            return data
        parts = [data]  # it has changed since, or is larger than one call reads
        while parts[-1]:
            parts.append(os.read(file, max(size + 1, _LEAST)))
        return b"".join(parts)
    finally:
        os.close(file)


def read_part(name: str, offset: int, size: int) -> bytes:
    """A part of a file, which stays open for the next; fewer bytes at its end.

    Raises:
        OSError: missing, or not a regular file.
    """
    status = _status(name)
    # A file that replaces another has another inode.
    file = _opened(name, status.st_dev, status.st_ino)
    data = os.pread(file.descriptor, size, offset)
    while len(data) < size and (
        more := os.pread(file.descriptor, size - len(data), offset + len(data))
    ):
        data += more
    return data


def _status(name: str) -> os.stat_result:
    status = os.stat(name)  # noqa: PTH116 -- a path costs more than the call
    if not stat.S_ISREG(status.st_mode):  # opening a named pipe would wait forever
        raise OSError(f"expected a regular file, got another type: {name}")
    return status


class _OpenFile:
    """A file that is closed when nobody reads it any more."""

    def __init__(self, name: str) -> None:
        self.descriptor = os.open(name, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


@lru_cache(_OPEN_FILES)
def _opened(name: str, device: int, inode: int) -> _OpenFile:
    return _OpenFile(name)
