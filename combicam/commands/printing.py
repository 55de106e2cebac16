"""Print tables and run summaries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from combicam.engine.inputs.selection import ignored_words
from combicam.engine.run.status import rate_words

if TYPE_CHECKING:
    from combicam.engine.run.summary import RunSummary
    from combicam.export.formats.runtimes import RuntimeCheck

Rows = list[tuple[str, str]]


def print_table(rows: Sequence[tuple[str, str]]) -> None:
    """Print two columns, names and values."""
    width = max(len(key) for key, _ in rows)
    print("\n".join(f"  {key:<{width}}  {value}" for key, value in rows), flush=True)


def check_rows(check: RuntimeCheck) -> Rows:
    """What a runtime lacks of a file, as a table."""
    rows = [
        (f"for {check.runtime}", f"{check.nodes} nodes, checked {check.basis}"),
        *((concern.effect, str(concern).partition(": ")[2]) for concern in check.concerns),
    ]
    if not check.concerns:
        rows.append(("missing, slow", "nothing that is known"))
    if check.command:
        rows.append(("build it (untried)", check.command))
    return rows


def summary_rows(summary: RunSummary) -> Rows:
    """The summary of a run as a table."""
    failed = ", ".join(f"{n} {status}" for status, n in summary.failures.items())
    rows = [
        ("images", str(summary.images)),
        ("failures", f"{sum(summary.failures.values())}" + (f" ({failed})" if failed else "")),
        *([("ignored", ignored_words(summary.ignored))] if summary.ignored else []),
        ("images/s", rate_words(summary.images_per_s)),
        ("slowest stage", summary.bottleneck or "nothing was left to do"),
        ("run", str(summary.run)),
    ]
    if summary.accuracy is not None:
        rows += summary.accuracy.lines()
    if summary.overlays:
        rows.append(("overlays", str(summary.overlays[0].parent)))
    return rows
