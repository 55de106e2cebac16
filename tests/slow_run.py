"""A run that takes its time, in a process of its own: to be killed, stopped and watched.

``python slow_run.py JSON``, with the keyword arguments of :func:`main`.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import spawned

from combicam.engine.run.config import RunConfig
from combicam.engine.runner import run

# Where it kills itself: in which call of which function, which is never begun.
STEPS = {
    "before the manifest": ("combicam.engine.runner", "write_manifest", 1),
    "between manifest and fingerprint": ("combicam.engine.run.directory", "write_json", 1),
    "before the first byte of a shard": ("combicam.engine.shards.writer", "temporary_path", 2),
    "before its fsync": ("combicam.engine.storage.atomic", "sync", 9),
    "before the rename of the first": ("combicam.engine.shards.writer", "commit", 1),
    "before its rename": ("combicam.engine.shards.writer", "commit", 2),
    "before its record": ("combicam.engine.run.records", "write_json", 1),
    "before the next record": ("combicam.engine.run.records", "write_json", 2),
}


def die_in_call(module: str, name: str, number: int) -> None:
    original = getattr(importlib.import_module(module), name)
    calls = 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(importlib.import_module(module), name, counted)


def main(source: str, output: str, pause: float, step: str | None, options: dict[str, Any]) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background jobs
    if step is not None:
        die_in_call(*STEPS[step])
    config = RunConfig(source, output, "fake", **options)  # type: ignore[arg-type]
    run(config, spawned.Slow(pause), make=spawned.slow)


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
