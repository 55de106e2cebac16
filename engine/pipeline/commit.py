"""Encode results as shard files and commit them: the ``encode`` and ``commit`` stages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from time import perf_counter
from typing import Any

from combicam.engine.pipeline.explain_stage import ExplainedBatch
from combicam.engine.run.failure_limit import FailureLimit
from combicam.engine.run.layout import RunLayout
from combicam.engine.run.log import event
from combicam.engine.run.records import remove_record, write_record
from combicam.engine.run.work import ShardReport, kept_rows, kept_statuses
from combicam.engine.shards.row_format import ShardFormat
from combicam.engine.shards.status import OK
from combicam.engine.shards.writer import ShardWriter


def write_shards(
    explained: Iterable[ExplainedBatch], run: RunLayout, rows: ShardFormat, limit: FailureLimit
) -> Iterator[ShardReport]:
    """Encode batches and commit each shard when it is complete.

    Args:
        explained: batches, shard by shard.
        run: paths of the run.
        rows: columns of the rows.
        limit: counts failures before their shard is committed, and stops the run at too many.

    Yields:
        A report of each batch.
    """
    writer: ShardWriter | None = None
    statuses: Counter[str] = Counter()
    seconds: dict[str, float] = {}
    try:
        for item in explained:
            batch, shard = item.batch, item.batch.work.index
            start = perf_counter()
            if writer is None:
                # In the run's folder, so that readers of the shards see no file of it yet.
                writer = ShardWriter(
                    run.shard(shard), rows, run.path, kept=kept_rows(run, batch.work)
                )
                statuses.update(kept_statuses(run, batch.work))
            table = rows.table(batch.records, item.results)
            writer.add(table, batch.rows)
            statuses.update(table.column("status").to_pylist())
            failed = _failed(table)
            limit.count(len(failed), failed[-1] if failed else None)
            encoded = perf_counter()
            batch.add_seconds("encode", encoded - start)
            if batch.is_last:
                remove_record(run, shard)
                writer.commit()
                writer = None
                batch.add_seconds("commit", perf_counter() - encoded)
            for stage, value in batch.seconds.items():
                seconds[stage] = seconds.get(stage, 0.0) + value
            if batch.is_last:
                event("committed", **write_record(run, shard, statuses, seconds))
                statuses, seconds = Counter(), {}
            yield ShardReport(
                images=len(batch.records),
                failures=len(failed),
                last_failure=failed[-1] if failed else None,
                seconds=batch.seconds,
                shard=shard if batch.is_last else None,
                batch_limit=item.batch_limit,
                halvings=item.halvings,
            )
    finally:
        if writer is not None:
            writer.discard()


def _failed(table: Any) -> list[str]:
    rows = table.select(["id", "status", "error"]).to_pylist()
    return [f"{row['id']}, {row['error']}" for row in rows if row["status"] != OK]
