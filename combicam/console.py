"""Make the command line work on every console: any encoding, closed streams, broken pipes."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

_BROKEN_PIPE = 128 + 13  # as a shell tells of SIGPIPE


@contextmanager
def console() -> Iterator[None]:
    """Run a command; use it as a decorator.

    * What the console's encoding lacks is printed as escapes such as ``\\u03c3``.
    * Streams that are closed, as services have them, are replaced by the null device.
    * Messages and progress that stderr does not take are dropped: they must not end the work.
    * Output that nobody reads any more (``| head``) ends the command with exit code 141.
    * Other errors of files and disks are one line.

    Raises:
        SystemExit: such an error.
    """
    _fill_descriptors()
    before = sys.stdout, sys.stderr
    sys.stdout = _tolerant(sys.stdout)
    sys.stderr = _Forgiving(_tolerant(sys.stderr))
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError as error:
        _discard_output()
        raise SystemExit(_BROKEN_PIPE) from error
    except OSError as error:
        _discard_output()
        raise SystemExit(f"combicam: error: {os_error_words(error)}") from error
    finally:
        sys.stdout, sys.stderr = before


def os_error_words(error: OSError) -> str:
    """What failed, why, and what to do."""
    advice = {
        errno.ENOSPC: "free space, or choose another output",
        errno.EDQUOT: "free space, or choose another output",
        errno.EROFS: "choose an output that can be written",
        errno.EACCES: "change its permissions, or choose another path",
        errno.EPERM: "change its permissions, or choose another path",
    }
    what = error.filename if error.filename is not None else "the output"
    reason = os.strerror(error.errno) if error.errno else str(error) or type(error).__name__
    return f"{what}: {reason}; {advice.get(error.errno or 0, 'choose another path')}"


class _Forgiving:
    """A stream whose errors are dropped: who reads it may be gone, or its disk may be full."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _tolerant(stream: Any) -> Any:
    if stream is None:
        return open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123 – it lives as long as we do
    with suppress(AttributeError, ValueError):
        stream.reconfigure(errors="backslashreplace")
    return stream


def _fill_descriptors() -> None:
    """Open the standard descriptors that are closed: the next file would get their numbers, and
    what libraries print would be written into it."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _discard_output() -> None:
    """Make the interpreter's last flush succeed."""
    with suppress(OSError, ValueError, AttributeError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
