"""The ``encode`` and ``commit`` stages: results become shard files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from time import perf_counter
from typing import Any

from combicam.engine.pipeline.explain_stage import ExplainedBatch
from combicam.engine.run.directory import RunDirectory, shard_record
from combicam.engine.run.log import event
from combicam.engine.run.work import Kept
from combicam.engine.shards.files import ShardWriter, shard_path
from combicam.engine.shards.row_format import ShardFormat


def write_shards(
    explained: Iterable[ExplainedBatch],
    run: RunDirectory,
    shard_format: ShardFormat,
    kept: Callable[[int], Kept | None],
    tally: Callable[[Any], None],
    done: Callable[[dict[str, float], int], None],
) -> None:
    """Encode batches and commit every shard that is complete.

    Args:
        explained: batches, shard by shard.
        run: where.
        shard_format: columns of the rows.
        kept: what stays of a shard that is written again.
        tally: called with a batch's rows, before they are committed; may raise to end the run.
        done: called with a batch's seconds per stage and number of rows.
    """
    writer: ShardWriter | None = None
    statuses: Counter[str] = Counter()
    seconds: dict[str, float] = {}
    try:
        for item in explained:
            batch = item.batch
            start = perf_counter()
            if writer is None:
                writer = ShardWriter(shard_path(run.path, batch.shard), shard_format)
                old = kept(batch.shard)
                if old is not None:
                    writer.add(old.table, old.rows)
                    statuses.update(old.table.column("status").to_pylist())
            table = shard_format.table(batch.records, item.results)
            writer.add(table, batch.rows)
            statuses.update(table.column("status").to_pylist())
            tally(table)
            encoded = perf_counter()
            batch.add_seconds("encode", encoded - start)
            if batch.is_last:
                run.forget_record(batch.shard)  # of the file that is replaced
                writer.commit()
                writer = None
                batch.add_seconds("commit", perf_counter() - encoded)
            for stage, value in batch.seconds.items():
                seconds[stage] = seconds.get(stage, 0.0) + value
            if batch.is_last:
                record = shard_record(batch.shard, statuses, seconds)
                run.write_record(batch.shard, record)
                event("committed", **record)
                statuses, seconds = Counter(), {}
            done(batch.seconds, len(batch.records))
    finally:
        if writer is not None:
            writer.discard()
