"""Define the remaining work of a run, its executor, and its reports."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from combicam.engine.inputs.manifest import Manifest
from combicam.engine.run.directory import committed_shards
from combicam.engine.run.layout import RunLayout
from combicam.engine.run.records import statuses_by_shard
from combicam.engine.run.stage_times import StageTimes
from combicam.engine.storage.paths import open_parquet, read_parquet


@dataclass(frozen=True)
class ShardWork:
    """A missing shard, or rows of a committed one to be retried.

    Attributes:
        index: of the shard.
        rows: row numbers in the shard, in order; None for all.
    """

    index: int
    rows: tuple[int, ...] | None = None

    def places(self, images: int) -> Sequence[int]:
        """The row numbers to process, of a shard with ``images`` rows."""
        return range(images) if self.rows is None else self.rows


@dataclass(frozen=True)
class ShardReport:
    """Work done since the last report; empty if nothing was finished.

    Attributes:
        images: rows that were processed.
        failures: how many of them are not ok.
        last_failure: id and error of the last failure.
        seconds: stage -> busy seconds.
        shard: index of the shard that was committed with these rows; None if none was.
        batch_limit: images that fit into memory, if fewer than requested.
        halvings: how often the batch was halved because memory was short.
    """

    images: int = 0
    failures: int = 0
    last_failure: str | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    shard: int | None = None
    batch_limit: int | None = None
    halvings: int = 0

    def __add__(self, later: ShardReport) -> ShardReport:
        """Merge two reports."""
        limits = [n for n in (self.batch_limit, later.batch_limit) if n is not None]
        return ShardReport(
            images=self.images + later.images,
            failures=self.failures + later.failures,
            last_failure=later.last_failure or self.last_failure,
            seconds={
                stage: self.seconds.get(stage, 0.0) + later.seconds.get(stage, 0.0)
                for stage in {**self.seconds, **later.seconds}
            },
            shard=later.shard,
            batch_limit=min(limits, default=None),
            halvings=self.halvings + later.halvings,
        )


class ShardExecutor(Protocol):
    """Explains and commits shards, in this process or in workers."""

    @property
    def times(self) -> StageTimes:
        """Seconds per stage since the first image was read."""

    def process(self, work: Iterable[ShardWork]) -> Generator[ShardReport, None, None]:
        """Explain and commit shards; closing the generator stops the work.

        Args:
            work: every shard once.

        Yields:
            A report several times a second, an empty one if nothing was finished meanwhile.

        Raises:
            RunError: the explainer failed, too many images failed, or workers were lost
                repeatedly; also any other error of a stage.
        """


def kept_rows(run: RunLayout, work: ShardWork) -> Iterator[tuple[Any, Sequence[int]]]:
    """Rows to copy from a shard's old file into the new one, and their numbers; row group by row
    group, because a shard may be larger than memory."""
    if work.rows is None:
        return
    start = 0
    with open_parquet(run.shard(work.index)) as file:
        for group in range(file.metadata.num_row_groups):
            table = file.read_row_group(group)
            numbers = np.arange(start, start + table.num_rows)
            start += table.num_rows
            stay = np.setdiff1d(numbers, work.rows)
            yield table.take(stay - numbers[0]), stay.tolist()


def kept_statuses(run: RunLayout, work: ShardWork) -> Counter[str]:
    """How many of these rows have which status."""
    if work.rows is None:
        return Counter()
    statuses = read_parquet(run.shard(work.index), ["status"]).column(0).to_pylist()
    return Counter(statuses) - Counter(statuses[row] for row in work.rows)


def work_left(run: RunLayout, manifest: Manifest, retried: Collection[str]) -> list[ShardWork]:
    """The missing shards and, if requested, failed rows of the others.

    Args:
        run: paths of the run.
        manifest: of the run.
        retried: the statuses of rows to try again.
    """
    committed = committed_shards(run)
    work = [ShardWork(index) for index in range(manifest.shards) if index not in committed]
    if retried:
        for shard, statuses in statuses_by_shard(run, committed, repair=True).items():
            if set(statuses) & set(retried):
                status = read_parquet(run.shard(shard), ["status"]).column(0)
                failed = pc.indices_nonzero(pc.is_in(status, pa.array(sorted(retried))))
                work.append(ShardWork(shard, tuple(failed.to_pylist())))
    return sorted(work, key=lambda item: item.index)
