"""Write and read the record of each shard: counts by status, seconds by stage."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from combicam.engine.run.layout import RunLayout
from combicam.engine.storage.atomic import write_json
from combicam.engine.storage.paths import read_parquet, read_texts


def write_record(
    run: RunLayout, shard: int, statuses: Counter[str], seconds: Mapping[str, float]
) -> dict[str, Any]:
    """Write ``records/00042.json``.

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


def remove_record(run: RunLayout, shard: int) -> None:
    """Remove the record of a shard whose file is about to be replaced."""
    run.record(shard).unlink(missing_ok=True)
    run.early_record(shard).unlink(missing_ok=True)


def statuses_by_shard(
    run: RunLayout, shards: Iterable[int], *, repair: bool = False
) -> dict[int, Counter[str]]:
    """Count the rows of each shard by status; arguments as for :func:`count_statuses`.

    Damaged records count as missing. With ``repair``, records of earlier versions are moved from
    the folder of the shards, so that readers can take it as a data set.
    """
    shards = sorted(shards)
    records = _records(run, shards)
    if repair:
        for shard, record in records.items():
            early = run.early_record(shard)
            if early.exists():
                write_json(run.record(shard), record)
                early.unlink()
    counts = {shard: Counter(record["statuses"]) for shard, record in records.items()}
    for shard in shards:
        if shard not in counts:
            rows = read_parquet(run.shard(shard), ["status"]).column("status").to_pylist()
            counts[shard] = Counter(rows)
            if repair:
                write_record(run, shard, counts[shard], {})
    return {shard: counts[shard] for shard in shards}


def _records(run: RunLayout, shards: Sequence[int]) -> dict[int, dict[str, Any]]:
    """The intact records of shards."""
    records: dict[int, dict[str, Any]] = {}
    for folder, path in ((run.shards, run.early_record), (run.records, run.record)):
        names = {found.name for found in folder.glob("[0-9]*.json")}
        there = [shard for shard in shards if path(shard).name in names]
        for shard, text in zip(there, read_texts([path(s) for s in there]), strict=True):
            if (record := _parsed(text)) is not None:
                records[shard] = record
    return records


def _parsed(text: str) -> dict[str, Any] | None:
    try:
        record = json.loads(text)
        Counter(record["statuses"]).total()
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return dict(record)
