"""Report a run's progress: a progress bar, ``progress.json`` and the log."""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
from collections import deque
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm

from combicam.engine.run.layout import RunLayout
from combicam.engine.run.log import event, run_log
from combicam.engine.storage.atomic import write_json
from combicam.engine.storage.paths import is_remote
from combicam.errors import first_line

_HEARTBEAT_S, _STORE_HEARTBEAT_S = 2.0, 10.0
_RECENT_S = 60.0


class Progress:
    """Reports the progress of one invocation; use it as a context manager.

    ``progress.json`` is rewritten every two seconds, in an object store every ten (atomically but
    without fsync: it is a heartbeat, not a result); ``log.jsonl`` gets a line for every event.

    Args:
        run: paths of the run.
        images: of the whole run.
        done: how many were committed before.
        show: draw a progress bar on stderr, and print warnings above it.
        fields: of the ``started`` event.
    """

    def __init__(
        self, run: RunLayout, images: int, done: int, *, show: bool, fields: dict[str, Any]
    ) -> None:
        self._run = run
        self._images = images
        self._before = done
        self._new = 0
        self._bottleneck: str | None = None
        self._started = time.time()
        # A monotonic clock for durations.
        self._began = self._written = time.monotonic()
        self._recent: deque[tuple[float, int]] = deque([(self._began, 0)])
        self._bar = tqdm(
            total=images, initial=done, unit="image", disable=not show or sys.stderr is None
        )
        self._show = show
        self._fields = fields
        self._open = ExitStack()

    def __enter__(self) -> Self:
        self._write("running")
        self._save_log = self._open.enter_context(run_log(self._run, self._show))
        event("started", images=self._images, done=self._before, **_process(), **self._fields)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # None: finished; Exception: failed; any other: stopped by the user or a signal.
        state = "finished" if error is None else "stopped"
        fields: dict[str, Any] = {
            "images": self._new,
            "seconds": round(time.monotonic() - self._began, 3),
        }
        with self._open:
            if isinstance(error, Exception):
                state = "failed"
                event(state, logging.ERROR, error=first_line(error), **fields)
            else:
                event(state, **fields)
        self._bar.close()
        self._write(state)

    def update(self, new: int, bottleneck: str | None) -> None:
        """Update the progress; call it several times a second.

        Args:
            new: images of this invocation so far.
            bottleneck: the stage whose threads wait least.
        """
        self._new, self._bottleneck = new, bottleneck
        if bottleneck is not None:
            self._bar.set_postfix_str(f"busiest: {bottleneck}", refresh=False)
        self._bar.update(self._before + new - self._bar.n)
        if time.monotonic() - self._written >= heartbeat_s(self._run.path):
            self._write("running")
            self._save_log()

    def _write(self, state: str) -> None:
        now = self._written = time.monotonic()
        self._recent.append((now, self._new))
        while now - self._recent[0][0] > _RECENT_S:
            self._recent.popleft()
        since, count = self._recent[0]
        values = {
            "state": state,
            **_process(),
            "started": self._started,
            "updated": time.time(),
            "images": self._images,
            "done": self._before + self._new,
            "new_images": self._new,
            "images_per_s": self._new / max(now - self._began, 1e-9),
            "recent_images_per_s": (self._new - count) / max(now - since, 1e-9),
            "bottleneck": self._bottleneck,
        }
        write_json(self._run.progress, values, durable=False)


def heartbeat_s(run: Path) -> float:
    """Seconds between two heartbeats."""
    return _STORE_HEARTBEAT_S if is_remote(run) else _HEARTBEAT_S


def _process() -> dict[str, Any]:
    return {"pid": os.getpid(), "host": socket.gethostname()}
