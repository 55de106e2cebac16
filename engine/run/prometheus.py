"""Write a run's status for Prometheus, for node_exporter's textfile collector."""

from __future__ import annotations

import time
from pathlib import Path

from combicam.engine.run.status import RunStatus
from combicam.requirements import require


def write_metrics(status: RunStatus, path: str | Path) -> None:
    """Write a file in the text exposition format, atomically.

    Every metric has the label ``run``; ``combicam_failures`` also has ``status``;
    ``combicam_running`` is 1 or 0. Speeds are left out if nothing ran yet.

    Args:
        status: of :func:`~combicam.engine.run.status.run_status`.
        path: in the collector's folder, with the suffix ``.prom``.

    Raises:
        MissingExtra: prometheus_client is not installed.
        ValueError: another suffix, or a folder that does not exist.
    """
    require("prometheus_client", extra="metrics", operation="status")
    from prometheus_client import CollectorRegistry, Gauge, write_to_textfile

    path = Path(path)
    if path.suffix != ".prom" or not path.parent.is_dir():
        raise ValueError(
            f"status: expected metrics as NAME.prom in an existing folder, got {path}; the "
            "collector reads only such files"
        )
    now = time.time()
    values = {
        "running": ("Whether the run is running.", float(status.state == "running")),
        "images": ("Inputs of the run.", status.images),
        "shards": ("Shards of the run.", status.shards),
        "committed_images": ("Inputs in committed shards.", status.committed_images),
        "committed_shards": ("Shards that are committed.", status.committed_shards),
        "images_per_second": ("Speed of the last invocation.", status.images_per_s),
        "recent_images_per_second": ("Speed in its last minute.", status.recent_images_per_s),
        "last_commit_timestamp_seconds": (
            "When the last shard was committed.",
            None if status.last_commit is None else now - status.last_commit,
        ),
    }
    registry, run = CollectorRegistry(), str(status.run)
    for name, (text, value) in values.items():
        if value is not None:
            Gauge(f"combicam_{name}", text, ["run"], registry=registry).labels(run).set(value)
    failures = Gauge(
        "combicam_failures",
        "Committed inputs without a heatmap.",
        ["run", "status"],
        registry=registry,
    )
    for kind, count in status.failures.items():
        failures.labels(run, kind).set(count)
    write_to_textfile(str(path), registry)
