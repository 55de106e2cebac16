"""``combicam run``: explain any number of images."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from combicam.commands.printing import print_table, summary_rows
from combicam.engine.pipeline.pipeline import start_loading
from combicam.engine.run.config import RunConfig
from combicam.engine.run.explainer import make_run_explainer
from combicam.engine.runner import run

Config = RunConfig


class Stopped(BaseException):
    """A signal stopped the run; ``code`` is the exit code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def main(config: RunConfig) -> None:
    """Run, and print the summary."""
    start_loading(config)
    explainer = make_run_explainer(config)
    if explainer.note:
        print(explainer.note, file=sys.stderr)
    try:
        with _stoppable():
            summary = run(config, explainer)
    except Stopped as stopped:
        print(
            "combicam: stopped; committed shards are kept, run again to continue", file=sys.stderr
        )
        raise SystemExit(stopped.code) from None
    print_table(summary_rows(summary))


@contextmanager
def _stoppable() -> Iterator[None]:
    """End the run after the current commit at SIGINT or SIGTERM; at a second one, immediately."""

    def stop(number: int, _frame: object) -> None:
        for known in previous:
            signal.signal(known, signal.SIG_DFL)
        raise Stopped(128 + number)

    previous = {known: signal.signal(known, stop) for known in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for known, handler in previous.items():
            signal.signal(known, handler)
