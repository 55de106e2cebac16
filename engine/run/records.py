"""Write and read the record beside each shard: counts by status, seconds by stage."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from combicam.engine.run.layout import RunLayout
from combicam.engine.storage.atomic import write_json
from combicam.engine.storage.paths import read_parquet, read_texts


def write_record(
    run: RunLayout, shard: int, statuses: Counter[str], seconds: Mapping[str, float]
) -> dict[str, Any]:
    """Write ``shards/00042.json``.

    Args:
        run: paths of the run.
        shard: index of a committed shard.
        statuses: status -> number of rows.
        seconds: stage -> busy seconds.

    Returns:
        The record.
    """
    record = {
        "shard": shard,
        "images": statuses.total(),
        "statuses": dict(sorted(statuses.items())),
        "seconds": {name: round(value, 6) for name, value in seconds.items()},
    }
    write_json(run.record(shard), record)
    return record


def count_statuses(run: RunLayout, shards: Iterable[int], *, repair: bool = False) -> Counter[str]:
    """Count the rows of committed shards by status.

    Args:
        run: paths of the run.
        shards: indices of the shards.
        repair: write records that are missing because a process died after writing the shard.
    """
    return sum(statuses_by_shard(run, shards, repair=repair).values(), Counter())


def statuses_by_shard(
    run: RunLayout, shards: Iterable[int], *, repair: bool = False
) -> dict[int, Counter[str]]:
    """Count the rows of each shard by status; arguments as for :func:`count_statuses`."""
    shards = sorted(shards)
    records = {path.name for path in run.shards.glob("[0-9]*.json")}
    recorded = [shard for shard in shards if run.record(shard).name in records]
    counts = {
        shard: Counter(json.loads(text)["statuses"])
        for shard, text in zip(
            recorded, read_texts([run.record(shard) for shard in recorded]), strict=True
        )
    }
    for shard in shards:
        if shard not in counts:
            rows = read_parquet(run.shard(shard), ["status"]).column("status").to_pylist()
            counts[shard] = Counter(rows)
            if repair:
                write_record(run, shard, counts[shard], {})
    return {shard: counts[shard] for shard in shards}
