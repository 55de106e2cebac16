"""``combicam report``: write a run as one HTML page that opens from disk."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from combicam.commands.printing import print_table
from combicam.engine.drawing.colormaps import DEFAULT_COLORMAP
from combicam.engine.report.cards import Cards
from combicam.engine.report.report import write_report
from combicam.engine.run.status import run_status
from combicam.engine.storage.paths import LOCATION


@dataclass(frozen=True)
class Config:
    """Write a run as one HTML page: images with heatmaps, locations, counts, failures.

    Args:
        run: run directory, finished or not.
        output: HTML file; default: report.html in the run directory.
        sample: largest number of images to show.
        where: which images to show, an SQL condition: "status = 'ok' and score > 0.5". Columns are
            those of the run, and ``score`` and ``target`` of the first target.
        sort: SQL order of the images, such as "score desc, id"; default: a random sample.
        watch: rewrite the page every WATCH seconds until the run ends; an open page reloads.
        colormap: initial colormap of the heatmaps: viridis, cividis, inferno, jet.

    Raises:
        ValueError: ``watch`` is not positive.
    """

    run: Annotated[tyro.conf.Positional[Path], LOCATION]
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    sample: int = 200
    where: str | None = None
    sort: str | None = None
    watch: float | None = None
    colormap: str = DEFAULT_COLORMAP

    def __post_init__(self) -> None:
        if self.watch is not None and not self.watch > 0:
            raise ValueError(f"report: expected watch > 0 seconds, got {self.watch}")


def main(config: Config) -> None:
    """Write the page, once or until the run ends."""
    cards = Cards()
    while True:
        # Read the status first, so that the last page has everything that was committed.
        status = run_status(config.run)
        goes_on = config.watch is not None and status.state == "running"
        if config.watch is not None and goes_on and not status.committed_shards:
            time.sleep(config.watch)
            continue
        path = write_report(
            config.run,
            config.output,
            sample=config.sample,
            where=config.where,
            sort=config.sort,
            colormap=config.colormap,
            live_s=config.watch if goes_on else None,
            cards=cards,
        )
        size = path.stat().st_size / 1e6
        print_table([("report", f"{path} ({size:.1f} MB)")])
        if config.watch is None or not goes_on:
            return
        time.sleep(config.watch)
