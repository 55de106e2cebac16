"""Write and read a run's log: one JSON object a line; warnings also on stderr."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from combicam.engine.run.layout import RunLayout
from combicam.engine.storage.atomic import temporary_path
from combicam.engine.storage.paths import is_remote

_NEEDED = ("time", "event")
log = logging.getLogger("combicam.run")


class JsonLines(logging.Formatter):
    """A record as one line of JSON: time (UTC, ISO 8601), level, event, and its fields."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without a newline."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        values = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        return json.dumps(values | getattr(record, "fields", {}), default=str)


class _AboveBar(logging.Handler):
    """Prints warnings above the progress bar; errors are raised, not logged here."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno != logging.WARNING or sys.stderr is None:
            return
        fields = ", ".join(f"{k}={v}" for k, v in getattr(record, "fields", {}).items())
        text = f"combicam: {record.getMessage().replace('_', ' ')}" + (
            f" ({fields})" if fields else ""
        )
        tqdm.write(text, file=sys.stderr)


class _File(logging.FileHandler):
    """Drops what a full disk does not take: the shards will say so."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Say nothing."""


@contextmanager
def run_log(run: RunLayout, show: bool) -> Iterator[Callable[[], None]]:
    """Append this process's events to a run's ``log.jsonl`` as they happen.

    Objects cannot be appended to: for an object store the log is written on this machine and
    uploaded when it is saved.

    Args:
        run: paths of the run.
        show: also print warnings on stderr.

    Returns:
        A function that saves the log.
    """
    path = run.log
    if is_remote(path):
        path = temporary_path(path)
        path.write_bytes(run.log.read_bytes() if run.log.exists() else b"")

    def save() -> None:
        if path != run.log:
            run.log.write_bytes(path.read_bytes())

    _end_last_line(path)
    to_file = _File(path, encoding="utf-8")
    to_file.setFormatter(JsonLines())
    handlers: list[logging.Handler] = [to_file, *([_AboveBar()] if show else [])]
    if log.level == logging.NOTSET:
        log.setLevel(logging.INFO)
    for handler in handlers:
        log.addHandler(handler)
    try:
        yield save
    finally:
        for handler in handlers:
            log.removeHandler(handler)
            handler.close()
        save()


def _end_last_line(path: Path) -> None:
    """End a line that a killed process left incomplete."""
    if not path.exists() or path.stat().st_size == 0:
        return
    with path.open("rb+") as file:
        file.seek(-1, 2)
        if file.read(1) != b"\n":
            file.write(b"\n")


def event(name: str, level: int = logging.INFO, **fields: Any) -> None:
    """Log an event of the run; also available from ``logging.getLogger("combicam.run")``."""
    log.log(level, name, extra={"fields": fields})


def read_log(run: RunLayout) -> list[dict[str, Any]]:
    """All events, oldest first, without truncated lines; none if there is no log."""
    if not run.log.exists():
        return []
    events = []
    for line in run.log.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            continue  # truncated
        if isinstance(found, dict) and all(isinstance(found.get(k), str) for k in _NEEDED):
            events.append(found)
    return events
