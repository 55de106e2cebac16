"""Write the report of a run as one HTML page."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from combicam.engine.drawing.colormaps import COLORMAPS, DEFAULT_COLORMAP, colormap_hex
from combicam.engine.report.cards import Cards
from combicam.engine.report.facts import tell
from combicam.engine.report.page import page
from combicam.engine.report.selection import choose_rows
from combicam.engine.report.thumbnails import run_facts
from combicam.engine.run.open_run import open_run
from combicam.engine.run.status import run_status
from combicam.engine.storage.new_file import new_file
from combicam.engine.storage.paths import location


def write_report(
    run: str | Path,
    output: str | Path | None = None,
    *,
    sample: int = 200,
    where: str | None = None,
    sort: str | None = None,
    colormap: str = DEFAULT_COLORMAP,
    live_s: float | None = None,
    cards: Cards | None = None,
) -> Path:
    """Write a run's report: one HTML file that opens from disk, about 50 KB per image.

    Args:
        run: run directory, finished or not.
        output: the file, ``….html``; default: ``report.html`` in the run directory.
        sample: largest number of images to show.
        where: which images to show, an SQL condition: ``status = 'ok' and score > 0.5``.
        sort: their SQL order: ``score desc, id``; default: a random sample.
        colormap: initial colormap of the heatmaps: ``viridis``, ``cividis``, ``inferno``, ``jet``.
        live_s: seconds after which the page reloads itself; None for never.
        cards: of an earlier report of the run, to save work.

    Returns:
        The file.

    Raises:
        ValueError: an invalid filter, order, colormap, sample or output.
        RunError: not a run directory, or one without a committed shard.
    """
    _check(sample, colormap)
    opened, status = open_run(run), run_status(run)
    path = opened.path / "report.html" if output is None else location(output)
    if path.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"report: expected an output that ends in .html, got {path}; rename it")
    if not path.parent.is_dir():
        raise ValueError(f"report: expected a folder at {path.parent}, got none; make it")
    chosen = choose_rows(opened, sample, where, sort)
    facts = run_facts(opened)
    made = cards if cards is not None else Cards()
    shown = made.of(opened, facts, chosen.rows)
    name = _name(opened.path)
    data: dict[str, Any] = {
        "name": name,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "epoch": time.time(),
        "live": live_s,
        "colormap": colormap,
        "colormaps": {name: colormap_hex(name) for name in COLORMAPS},
        "where": where,
        "sort": sort,
        "facts": tell(opened, status, facts, chosen, shown),
        "maps": {"corners": opened.maps.align_corners, "layers": list(opened.maps.layers)},
        "cards": shown,
    }
    with new_file(path, "report") as temporary:
        temporary.write_text(page(f"{name} · combicam", data), encoding="utf-8")
    return path


def _name(run: Path) -> str:
    """Name of the folder, preceded by its parent's if it is just ``run``."""
    path = run.absolute() if isinstance(run, Path) else run
    return path.name if path.name != "run" else f"{path.parent.name}/run"


def _check(sample: int, colormap: str) -> None:
    if sample < 1:
        raise ValueError(f"report: expected sample >= 1, got {sample}")
    if colormap not in COLORMAPS:
        raise ValueError(f"report: expected colormap in {COLORMAPS}, got {colormap!r}")
