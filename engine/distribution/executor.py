"""Hand the shards of a run to workers, and give the shards of a lost worker to another."""

from __future__ import annotations

import logging
import math
from collections import Counter, deque
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from combicam.engine.run.config import RunConfig
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
    """The worker is gone, and everything that it had in hand with it."""

    reason: str


class WorkerBackend(Protocol):
    """Workers in numbered slots, wherever they run."""

    @property
    def slots(self) -> int:
        """How many."""

    @property
    def config(self) -> RunConfig:
        """Of every worker."""

    def start(self, slot: int) -> None:
        """Put a new worker there; it says :class:`Ready` once."""

    def hand(self, slot: int, work: ShardWork) -> None:
        """Give a shard to a ready worker; it answers each with a :class:`ShardReport`."""

    def events(self, timeout_s: float) -> Iterable[tuple[int, Ready | ShardReport | WorkerLost]]:
        """What happened, and where; waits a little for it.

        Raises:
            Exception: what a worker raised. It was no accident: another would raise it, too.
        """

    def stop(self) -> None:
        """End all workers, promptly."""


@dataclass
class _Slot:
    number: int
    is_ready: bool = False
    failed_starts: int = 0
    in_hand: dict[int, ShardWork] = field(default_factory=dict)


class Backlog:
    """Shards that nobody has; what was in the hands of a dead worker comes back.

    A shard that came back is handed out alone: when it kills its worker again, it is the cause.

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
        """The next shard for a worker that has some in hand; None for none."""
        in_hand = list(in_hand)
        if not in_hand and self._suspects:
            return self._suspects.popleft()
        if not self._fresh or any(self._deaths[index] for index in in_hand):
            return None
        return self._fresh.popleft()

    def put_back(self, work: Sequence[ShardWork], reason: str) -> None:
        """What a dead worker had in hand.

        Raises:
            RunError: a shard that was there at too many deaths.
        """
        for item in work:
            self._deaths[item.index] += 1
            if self._deaths[item.index] >= DEATHS:
                raise RunError(
                    f"run: expected shard {item.index} to be explained, got {DEATHS} workers that "
                    f"died of it (the last: {reason}); look at its inputs in manifest.parquet, or "
                    "give workers more memory (smaller batch_size), and run again: what is "
                    "committed is kept"
                )
            self._suspects.append(item)


class DistributedExecutor:
    """The :class:`~combicam.engine.run.work.ShardExecutor` that has workers do the shards.

    Args:
        backend: not started yet.
        limit: of failures; default: none.

    Attributes:
        times: seconds per stage, of all workers, since the first of them was ready.
    """

    def __init__(self, backend: WorkerBackend, limit: FailureLimit | None = None) -> None:
        self._backend = backend
        self._limit = limit or FailureLimit()
        self._ahead = shards_ahead(backend.config)
        self._is_working = False
        self.times = StageTimes(backend.config.workers, backend.slots)

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
        if not self._is_working:  # the first: until now nothing could be read
            self.times = StageTimes(self._backend.config.workers, self._backend.slots)
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
                    "lack memory for one more network"
                )
        event("worker_died", logging.WARNING, worker=slot.number, reason=lost.reason)
        backlog.put_back(list(slot.in_hand.values()), lost.reason)
        slot.in_hand.clear()
        slot.is_ready = False
        self._backend.start(slot.number)


def shards_ahead(config: RunConfig) -> int:
    """How many shards a worker has in hand: the one it reads, and those still in its pipeline."""
    in_pipeline = 6 * config.batch_size + 4 * config.workers
    return 2 + in_pipeline // config.storage.shard_size
