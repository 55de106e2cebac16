"""``combicam status``: show the progress of a run."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from combicam.commands.printing import print_table
from combicam.engine.run.prometheus import write_metrics
from combicam.engine.run.status import run_status, status_lines
from combicam.engine.storage.paths import LOCATION


@dataclass(frozen=True)
class Config:
    """Show the progress of a run, finished or not.

    Args:
        run: run directory.
        json: print JSON.
        watch: print again every WATCH seconds until the run ends.
        metrics: also write a text file for Prometheus, each time the status is printed.
    """

    run: Annotated[tyro.conf.Positional[Path], LOCATION]
    json: bool = False
    watch: float | None = None
    metrics: Path | None = None

    def __post_init__(self) -> None:
        if self.watch is not None and not self.watch > 0:
            raise ValueError(f"status: expected --watch > 0 seconds, got {self.watch}")


def main(config: Config) -> None:
    """Print the status, once or until the run ends."""
    while True:
        status = run_status(config.run)
        if config.json:
            print(json.dumps(status.to_dict()), flush=True)
        else:
            print_table(status_lines(status))
        if config.metrics is not None:
            write_metrics(status, config.metrics)
        if config.watch is None or status.state != "running":
            return
        time.sleep(config.watch)
