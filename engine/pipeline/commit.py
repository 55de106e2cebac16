"""Encode results as shard files and commit them: the ``encode`` and ``commit`` stages."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from threading import Event
from time import perf_counter
from typing import Any

from combicam.engine.pipeline.batch import Batch
from combicam.engine.pipeline.channel import Aborted, Channel
from combicam.engine.pipeline.explain_stage import ExplainedBatch
from combicam.engine.run.failure_limit import FailureLimit
from combicam.engine.run.layout import RunLayout
from combicam.engine.run.log import event
from combicam.engine.run.records import remove_record, write_record
from combicam.engine.run.work import ShardReport, ShardWork, kept_rows, kept_statuses
from combicam.engine.shards.row_format import ShardFormat
from combicam.engine.shards.status import OK
from combicam.engine.shards.writer import ShardWriter

# Batches that wait for a writer have at most so many bytes of maps, or are two.
_WAITING_BYTES = 64 * 2**20
_TICK_S = 0.1


def writer_threads(device: str, cores: int) -> int:
    """How many shards to encode at once: one thread keeps up with a CPU that explains."""
    return 1 if device == "cpu" else max(1, min(4, cores // 4))


def write_shards(
    explained: Iterable[ExplainedBatch],
    run: RunLayout,
    rows: ShardFormat,
    limit: FailureLimit,
    writers: int = 1,
) -> Iterator[ShardReport]:
    """Encode batches and commit each shard when it is complete.

    Args:
        explained: batches, shard by shard.
        run: paths of the run.
        rows: columns of the rows.
        limit: counts failures before their shard is committed, and stops the run at too many.
        writers: shards that are encoded at once, each in a thread; they are committed in order.

    Yields:
        A report of each batch, in order.
    """
    jobs: deque[_ShardJob] = deque()
    pool = ThreadPoolExecutor(writers, "combicam-write")
    try:
        for item in explained:
            if not jobs or jobs[-1].work.index != item.batch.work.index:
                while len(jobs) >= writers:
                    yield from jobs[0].rest()
                    jobs.popleft()
                before = jobs[-1].committed if jobs else None
                jobs.append(_ShardJob(item, run, rows, limit, before))
                jobs[-1].start(pool)
            jobs[-1].put(item)
            while len(jobs) > 1 and jobs[0].committed.is_set():
                yield from jobs[0].rest()
                jobs.popleft()
            yield from jobs[0].ready()
        while jobs:
            yield from jobs[0].rest()
            jobs.popleft()
    finally:
        for job in jobs:
            job.abort()
        pool.shutdown()


class _ShardJob:
    """Encodes the batches of a shard in a thread of a pool, and commits it.

    Args:
        first: its first batch.
        run, rows, limit: see :func:`write_shards`.
        before: set when the shard before it is committed; None if there is none.
    """

    def __init__(
        self,
        first: ExplainedBatch,
        run: RunLayout,
        rows: ShardFormat,
        limit: FailureLimit,
        before: Event | None,
    ) -> None:
        self.work: ShardWork = first.batch.work
        self.committed = Event()
        self._run, self._rows, self._limit, self._before = run, rows, limit, before
        size = 0 if first.results is None else first.results.heatmaps.nbytes
        self._inbox: Channel[ExplainedBatch] = Channel(max(2, _WAITING_BYTES // max(1, size)))
        self._reports: SimpleQueue[ShardReport | None] = SimpleQueue()
        self._future: Future[None]

    def start(self, pool: ThreadPoolExecutor) -> None:
        """Begin as soon as the pool has a free thread."""
        self._future = pool.submit(self._write)
        self._future.add_done_callback(lambda _: self._end())

    def put(self, item: ExplainedBatch) -> None:
        """Hand over the next batch; wait while too many are waiting.

        Raises:
            Exception: of the thread.
        """
        try:
            self._inbox.put(item)
        except Aborted:
            self._future.result()
            raise
        if item.batch.is_last:
            self._inbox.close()

    def ready(self) -> Iterator[ShardReport]:
        """The reports that there are now, without waiting.

        Raises:
            Exception: of the thread.
        """
        while not self._reports.empty():
            report = self._reports.get()
            if report is None:
                self._reports.put(None)  # for rest()
                self._future.result()
                return
            yield report

    def rest(self) -> Iterator[ShardReport]:
        """All further reports, until the commit.

        Raises:
            Exception: of the thread.
        """
        while (report := self._reports.get()) is not None:
            yield report
        self._future.result()

    def abort(self) -> None:
        """Make the thread drop its shard."""
        self._inbox.abort()

    def _end(self) -> None:
        self._inbox.abort()  # wakes whoever puts
        self._reports.put(None)

    def _write(self) -> None:
        run, shard = self._run, self.work.index
        # In the run's folder, so that readers of the shards see no file of it yet.
        writer = ShardWriter(run.shard(shard), self._rows, run.path, kept=kept_rows(run, self.work))
        statuses, seconds = kept_statuses(run, self.work), dict[str, float]()
        try:
            for item in self._inbox:
                batch = item.batch
                start = perf_counter()
                table = self._rows.table(batch.records, item.results)
                writer.add(table, batch.rows)
                statuses.update(table.column("status").to_pylist())
                failed = _failed(table)
                self._limit.count(len(failed), failed[-1] if failed else None)
                batch.add_seconds("encode", perf_counter() - start)
                if batch.is_last:
                    self._commit(writer, batch)
                for stage, value in batch.seconds.items():
                    seconds[stage] = seconds.get(stage, 0.0) + value
                if batch.is_last:
                    event("committed", **write_record(run, shard, statuses, seconds))
                    self.committed.set()
                self._reports.put(
                    ShardReport(
                        images=len(batch.records),
                        failures=len(failed),
                        last_failure=failed[-1] if failed else None,
                        seconds=batch.seconds,
                        shard=shard if batch.is_last else None,
                        batch_limit=item.batch_limit,
                        halvings=item.halvings,
                    )
                )
        except BaseException:
            writer.discard()
            raise

    def _commit(self, writer: ShardWriter, batch: Batch) -> None:
        start = perf_counter()
        writer.finish()  # several shards may wait for the disk
        batch.add_seconds("commit", perf_counter() - start)
        while self._before is not None and not self._before.wait(_TICK_S):
            self._inbox.check()
        start = perf_counter()
        remove_record(self._run, self.work.index)
        writer.commit()
        batch.add_seconds("commit", perf_counter() - start)


def _failed(table: Any) -> list[str]:
    rows = table.select(["id", "status", "error"]).to_pylist()
    return [f"{row['id']}, {row['error']}" for row in rows if row["status"] != OK]
