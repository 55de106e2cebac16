"""Read the progress of a run from its files, finished or not."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from combicam.engine.run.layout import RunLayout
from combicam.engine.run.log import read_log
from combicam.engine.run.progress import heartbeat_s
from combicam.engine.run.records import count_statuses
from combicam.engine.shards.status import OK
from combicam.engine.storage.atomic import read_json
from combicam.engine.storage.paths import location, open_parquet
from combicam.errors import RunError

_SILENT_BEATS = 15
_FIGURES = ("updated", "done", "images_per_s", "recent_images_per_s")
_ENDS = ("finished", "failed", "stopped")


@dataclass(frozen=True)
class Invocation:
    """One call of ``combicam run``, from the log.

    Attributes:
        started: UTC, ISO 8601.
        process: its host and pid.
        shards: how many it committed.
        end: ``finished``, ``failed`` or ``stopped``; None if it is running or was killed.
        error: why it failed.
    """

    started: str
    process: str
    shards: int
    end: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class RunStatus:
    """The progress of a run.

    Attributes:
        run: the directory.
        state: ``running``, ``finished``, ``failed``, ``stopped`` (by a signal), ``dead``
            (``running``, but silent for 15 heartbeats), or ``not begun`` (no heartbeat yet).
        images, shards: of the whole run.
        committed_images, committed_shards: how many are committed.
        failures: status -> committed rows, all but ``ok``.
        images_per_s: of the last invocation so far; recent_images_per_s: of its last minute.
        bottleneck: its busiest stage.
        remaining_s: at the recent speed; None if the run is not running.
        updated: seconds since the last heartbeat; None if there was none.
        last_commit: seconds since the last commit; None if there was none.
        process: host and pid of the last invocation.
        invocations: all of them, oldest first.
    """

    run: Path
    state: str
    images: int
    shards: int
    committed_images: int
    committed_shards: int
    failures: Mapping[str, int]
    images_per_s: float | None
    recent_images_per_s: float | None
    bottleneck: str | None
    remaining_s: float | None
    updated: float | None
    last_commit: float | None
    process: str | None
    invocations: tuple[Invocation, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self) | {"run": str(self.run)}


def run_status(path: str | Path) -> RunStatus:
    """Read the progress of a run from its manifest, shard records, heartbeat and log.

    Args:
        path: the run directory.

    Raises:
        RunError: not a run directory.
    """
    run = RunLayout(location(path))
    if not run.manifest.is_file():
        raise RunError(
            f"status: expected a run directory, got {run.path} without a {run.manifest.name}; a "
            "run writes it once it has listed its inputs"
        )
    with open_parquet(run.manifest) as file:
        footer = file.metadata
    shards = run.shard_files()
    times = [shard.stat().st_mtime for shard in shards.values()]
    statuses = count_statuses(run, shards)
    now, last = time.time(), _heartbeat(run)
    age = None if last is None else max(0.0, now - last["updated"])
    state = "not begun" if last is None else last["state"]
    if state == "running" and age is not None and age > _SILENT_BEATS * heartbeat_s(run.path):
        state = "dead"
    rate = None if last is None else last["recent_images_per_s"]
    left = footer.num_rows - (last["done"] if last is not None else 0)
    return RunStatus(
        run=run.path,
        state=state,
        images=footer.num_rows,
        shards=footer.num_row_groups,
        committed_images=statuses.total(),
        committed_shards=len(times),
        failures={status: n for status, n in sorted(statuses.items()) if status != OK},
        images_per_s=None if last is None else last["images_per_s"],
        recent_images_per_s=rate,
        bottleneck=None if last is None else last.get("bottleneck"),
        remaining_s=left / rate if state == "running" and rate else None,
        updated=age,
        last_commit=max(0.0, now - max(times)) if times else None,
        process=None if last is None else _process(last),
        invocations=tuple(_invocations(read_log(run))),
    )


def _heartbeat(run: RunLayout) -> dict[str, Any] | None:
    try:
        values = read_json(run.progress, "it is written again")
    except (FileNotFoundError, RunError):
        return None  # written without fsync: a power failure may leave an empty file
    whole = all(type(values.get(key)) in (int, float) for key in _FIGURES)
    return values if whole and isinstance(values.get("state"), str) else None


def _process(values: Mapping[str, Any]) -> str:
    return f"{values.get('host')}, pid {values.get('pid')}"


def _invocations(events: list[dict[str, Any]]) -> list[Invocation]:
    invocations: list[Invocation] = []
    for event in events:
        if event["event"] == "started":
            invocations.append(Invocation(event["time"], _process(event), 0))
        elif invocations and event["event"] == "committed":
            invocations[-1] = replace(invocations[-1], shards=invocations[-1].shards + 1)
        elif invocations and event["event"] in _ENDS:
            end = replace(invocations[-1], end=event["event"], error=event.get("error"))
            invocations[-1] = end
    return invocations


def rate_words(images_per_s: float | None) -> str:
    """Images per second as text; of slow work seconds per image, too."""
    if images_per_s is None:
        return ""
    if images_per_s >= 1 or images_per_s <= 0:
        return f"{images_per_s:.1f}"
    return f"{images_per_s:.2g}, {1 / images_per_s:.3g} s an image"


def status_lines(status: RunStatus) -> list[tuple[str, str]]:
    """The status as rows to print: names and values."""
    share = status.committed_images / max(status.images, 1)
    failed = ", ".join(f"{n} {name}" for name, n in status.failures.items())
    rows = [
        ("state", status.state),
        ("images", f"{status.committed_images} of {status.images} committed ({share:.1%})"),
        ("shards", f"{status.committed_shards} of {status.shards}"),
        ("failures", f"{sum(status.failures.values())}" + (f" ({failed})" if failed else "")),
    ]
    if status.images_per_s is not None:
        recent = f"{rate_words(status.recent_images_per_s)} in the last minute"
        rows.append(("images/s", f"{rate_words(status.images_per_s)} ({recent})"))
    if status.bottleneck is not None:
        rows.append(("slowest stage", status.bottleneck))
    if status.remaining_s is not None:
        rows.append(("remaining", _duration(status.remaining_s)))
    if status.last_commit is not None:
        rows.append(("last commit", f"{_duration(status.last_commit)} ago"))
    if len(status.invocations) > 1:
        ends = Counter(i.end or "killed" for i in status.invocations[:-1])
        before = ", ".join(f"{n} {end}" for end, n in ends.items())
        rows.append(("earlier invocations", before))
    if status.process is not None:
        rows.append(("process", f"{status.process}, last heartbeat {status.updated:.0f} s ago"))
    return rows


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02.0f} s"
