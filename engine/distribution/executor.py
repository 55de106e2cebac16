"""``Distribution``: hands the shards of a run to workers, and survives their deaths."""

from __future__ import annotations

import logging
import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from combicam.engine.distribution.worker import ShardReport
from combicam.engine.pipeline.pipeline import check_failures
from combicam.engine.run.config import RunConfig
from combicam.engine.run.log import event
from combicam.engine.run.stage_times import StageTimes
from combicam.engine.run.work import ShardWork
from combicam.errors import RunError

DEATHS = 3
_TICK_S = 0.1


@dataclass(frozen=True)
class Ready:
    """The worker has made its explainer."""


@dataclass(frozen=True)
class Died:
    """The worker is gone, and everything that it had in hand with it."""

    reason: str


class Crew(Protocol):
    """Workers in numbered seats, wherever they run."""

    @property
    def seats(self) -> int:
        """How many."""

    @property
    def config(self) -> RunConfig:
        """Of every worker."""

    def start(self, seat: int) -> None:
        """Put a new worker there; it says :class:`Ready` once."""

    def hand(self, seat: int, work: ShardWork) -> None:
        """Give a shard to a ready worker; it answers each with a :class:`ShardReport`."""

    def events(self, timeout_s: float) -> Iterable[tuple[int, Ready | ShardReport | Died]]:
        """What happened, and where; waits a little for it.

        Raises:
            Exception: what a worker raised. It was no accident: another would raise it, too.
        """

    def stop(self) -> None:
        """End all workers, promptly."""


@dataclass
class _Seat:
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


class Distribution:
    """A run's shards, done by a crew; to the runner it looks like one pipeline.

    Args:
        crew: not started yet.

    Attributes:
        times: seconds per stage so far, of all workers.
        images: rows done so far.
        failures: how many of the run's rows are not ok; may start above zero.
        max_failures: more of them end the run.
        batch_limit: images that fit into the smallest memory, where that is less than asked for.
    """

    def __init__(self, crew: Crew) -> None:
        self._crew = crew
        self._ahead = shards_ahead(crew.config)
        self._is_working = False
        self._halvings: dict[int, int] = {}
        self.times = StageTimes(crew.config.workers, crew.seats)
        self.images = 0
        self.failures = 0
        self.max_failures: int | None = None
        self.batch_limit: int | None = None

    @property
    def halvings(self) -> int:
        """How often a worker's memory was not enough."""
        return sum(self._halvings.values())

    def process(self, work: Iterable[ShardWork], on_tick: Callable[[], None]) -> None:
        """Have shards processed and committed.

        Args:
            work: every shard once.
            on_tick: called in this thread, some times a second.

        Raises:
            RunError: a worker's explainer failed, workers die of a shard or before they are
                ready, or too many images failed; whatever else a worker raises.
        """
        backlog = Backlog(work)
        seats = [_Seat(number) for number in range(min(self._crew.seats, len(backlog)))]
        try:
            for seat in seats:
                self._crew.start(seat.number)
            while len(backlog) or any(seat.in_hand for seat in seats):
                left = len(backlog) + sum(len(seat.in_hand) for seat in seats)
                for seat in seats:
                    self._fill(seat, backlog, math.ceil(left / len(seats)))
                for number, happened in self._crew.events(_TICK_S):
                    self._handle(seats[number], happened, backlog)
                on_tick()
        finally:
            self._crew.stop()

    def _fill(self, seat: _Seat, backlog: Backlog, share: int) -> None:
        while seat.is_ready and len(seat.in_hand) < min(share, self._ahead):
            work = backlog.take(seat.in_hand)
            if work is None:
                return
            seat.in_hand[work.index] = work
            self._crew.hand(seat.number, work)

    def _handle(self, seat: _Seat, happened: Ready | ShardReport | Died, backlog: Backlog) -> None:
        if isinstance(happened, Ready):
            seat.is_ready, seat.failed_starts = True, 0
            if not self._is_working:  # the first: until now nothing could be read
                self.times = StageTimes(self._crew.config.workers, self._crew.seats)
                self._is_working = True
        elif isinstance(happened, ShardReport):
            del seat.in_hand[happened.shard]
            self._count(seat, happened)
        else:
            if not seat.is_ready:
                seat.failed_starts += 1
                if seat.failed_starts >= DEATHS:
                    raise RunError(
                        f"run: expected worker {seat.number} to start, got {DEATHS} that died "
                        f"before they were ready (the last: {happened.reason}); its machine may "
                        "lack memory for one more network"
                    )
            event("worker_died", logging.WARNING, worker=seat.number, reason=happened.reason)
            backlog.put_back(list(seat.in_hand.values()), happened.reason)
            seat.in_hand.clear()
            seat.is_ready = False
            self._crew.start(seat.number)

    def _count(self, seat: _Seat, report: ShardReport) -> None:
        event(
            "committed",
            shard=report.shard,
            images=report.images,
            failures=report.failures,
            worker=seat.number,
            seconds=report.seconds,
        )
        self.times.add(report.seconds)
        self.images += report.images
        self.failures += report.failures
        self._halvings[seat.number] = report.halvings
        limits = [n for n in (self.batch_limit, report.batch_limit) if n is not None]
        self.batch_limit = min(limits, default=None)
        check_failures(self.failures, self.max_failures)


def shards_ahead(config: RunConfig) -> int:
    """How many shards a worker has in hand: the one it reads, and those still in its pipeline."""
    in_pipeline = 6 * config.batch_size + 4 * config.workers
    return 2 + in_pipeline // config.shard_size
