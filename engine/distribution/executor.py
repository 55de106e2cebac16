"""Distribute the shards of a run to workers, and reassign the shards of lost workers."""

from __future__ import annotations

import logging
import math
from collections import Counter, deque
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from combicam.engine.run.config import BATCH_ON_GPU, RunConfig
from combicam.engine.run.failure_limit import FailureLimit
from combicam.engine.run.log import event
from combicam.engine.run.stage_times import StageTimes
from combicam.engine.run.work import ShardReport, ShardWork
from combicam.errors import RunError

DEATHS = 3
_TICK_S = 0.1


@dataclass(frozen=True)
class Ready:
    """The worker has made its explainer."""


@dataclass(frozen=True)
class WorkerLost:
    """The worker died, and lost the shards that it was processing."""

    reason: str


class WorkerBackend(Protocol):
    """Starts workers in numbered slots, hands them shards and reports what they did."""

    @property
    def slots(self) -> int:
        """Number of workers."""

    @property
    def config(self) -> RunConfig:
        """Configuration of every worker."""

    def start(self, slot: int) -> None:
        """Start a new worker in a slot; it reports :class:`Ready` once."""

    def hand(self, slot: int, work: ShardWork) -> None:
        """Give a shard to a ready worker, which reports each with a :class:`ShardReport`."""

    def events(self, timeout_s: float) -> Iterable[tuple[int, Ready | ShardReport | WorkerLost]]:
        """Wait up to ``timeout_s`` for events; yield each with its slot.

        Raises:
            Exception: a worker raised it; retrying elsewhere would raise it again.
        """

    def stop(self) -> None:
        """Stop all workers promptly."""


@dataclass
class _Slot:
    number: int
    is_ready: bool = False
    failed_starts: int = 0
    in_hand: dict[int, ShardWork] = field(default_factory=dict)


class Backlog:
    """Shards that no worker has; those of a dead worker are put back.

    A shard that was put back is handed out alone, so that if its worker dies again, it is known to
    be the cause.

    Args:
        work: all shards.
    """

    def __init__(self, work: Iterable[ShardWork]) -> None:
        self._fresh = deque(work)
        self._suspects: deque[ShardWork] = deque()
        self._deaths: Counter[int] = Counter()

    def __len__(self) -> int:
        return len(self._fresh) + len(self._suspects)

    def take(self, in_hand: Iterable[int]) -> ShardWork | None:
        """The next shard for a worker that has the shards ``in_hand``; None if it must wait."""
        in_hand = list(in_hand)
        if not in_hand and self._suspects:
            return self._suspects.popleft()
        if not self._fresh or any(self._deaths[index] for index in in_hand):
            return None
        return self._fresh.popleft()

    def put_back(self, work: Sequence[ShardWork], reason: str) -> None:
        """Put back the shards of a dead worker.

        Raises:
            RunError: too many workers died while they had the same shard.
        """
        for item in work:
            self._deaths[item.index] += 1
            if self._deaths[item.index] >= DEATHS:
                raise RunError(
                    f"run: expected shard {item.index} to be explained, got {DEATHS} workers that "
                    f"died while processing it (the last: {reason}); check its inputs in "
                    "manifest.parquet, or reduce memory use (smaller batch_size), and run again: "
                    "committed shards are kept"
                )
            self._suspects.append(item)


class DistributedExecutor:
    """The :class:`~combicam.engine.run.work.ShardExecutor` that distributes shards to workers.

    Args:
        backend: not started yet.
        limit: of failed images; default: no limit.

    Attributes:
        times: seconds per stage, summed over workers, since the first worker was ready.
    """

    def __init__(self, backend: WorkerBackend, limit: FailureLimit | None = None) -> None:
        self._backend = backend
        self._limit = limit or FailureLimit()
        self._ahead = shards_ahead(backend.config)
        self._is_working = False
        self.times = _stage_times(backend)

    def process(self, work: Iterable[ShardWork]) -> Generator[ShardReport, None, None]:
        """See :class:`~combicam.engine.run.work.ShardExecutor`."""
        backlog = Backlog(work)
        slots = [_Slot(number) for number in range(min(self._backend.slots, len(backlog)))]
        try:
            for slot in slots:
                self._backend.start(slot.number)
            while len(backlog) or any(slot.in_hand for slot in slots):
                left = len(backlog) + sum(len(slot.in_hand) for slot in slots)
                for slot in slots:
                    self._fill(slot, backlog, math.ceil(left / len(slots)))
                yield ShardReport()
                for number, happened in self._backend.events(_TICK_S):
                    if isinstance(happened, ShardReport):
                        yield self._committed(slots[number], happened)
                    elif isinstance(happened, Ready):
                        self._begin(slots[number])
                    else:
                        self._replace(slots[number], happened, backlog)
        finally:
            self._backend.stop()

    def _fill(self, slot: _Slot, backlog: Backlog, share: int) -> None:
        while slot.is_ready and len(slot.in_hand) < min(share, self._ahead):
            work = backlog.take(slot.in_hand)
            if work is None:
                return
            slot.in_hand[work.index] = work
            self._backend.hand(slot.number, work)

    def _begin(self, slot: _Slot) -> None:
        slot.is_ready, slot.failed_starts = True, 0
        if not self._is_working:  # the first worker: nothing could be read before
            self.times = _stage_times(self._backend)
            self._is_working = True

    def _committed(self, slot: _Slot, report: ShardReport) -> ShardReport:
        assert report.shard is not None
        del slot.in_hand[report.shard]
        event(
            "committed",
            shard=report.shard,
            images=report.images,
            failures=report.failures,
            worker=slot.number,
            seconds=report.seconds,
        )
        self.times.add(report.seconds)
        self._limit.count(report.failures, report.last_failure)
        return report

    def _replace(self, slot: _Slot, lost: WorkerLost, backlog: Backlog) -> None:
        if not slot.is_ready:
            slot.failed_starts += 1
            if slot.failed_starts >= DEATHS:
                raise RunError(
                    f"run: expected worker {slot.number} to start, got {DEATHS} that died "
                    f"before they were ready (the last: {lost.reason}); its machine may "
                    "lack memory for another copy of the model"
                )
        event("worker_died", logging.WARNING, worker=slot.number, reason=lost.reason)
        backlog.put_back(list(slot.in_hand.values()), lost.reason)
        slot.in_hand.clear()
        slot.is_ready = False
        self._backend.start(slot.number)


def _stage_times(backend: WorkerBackend) -> StageTimes:
    config = backend.config
    return StageTimes(config.workers, backend.slots, streams=config.compute.streams or 1)


def shards_ahead(config: RunConfig) -> int:
    """How many shards a worker may hold: the one it reads, and those still in its pipeline."""
    batch = BATCH_ON_GPU if config.batch_size == "auto" else config.batch  # or fewer
    in_pipeline = (5 + (config.compute.streams or 1)) * batch + 4 * config.workers
    return 2 + in_pipeline // config.storage.shard_size
