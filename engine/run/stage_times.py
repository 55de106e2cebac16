"""Measure the time of a run's stages, and find the bottleneck."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter

STAGES = ("read", "decode", "batch", "explain", "encode", "commit")


@dataclass(frozen=True)
class StageSeconds:
    """Seconds that a stage's threads worked, and waited for other stages.

    Stages that share threads (read and decode; encode and commit) share the waiting time.
    """

    busy: float
    waiting: float


class StageTimes:
    """Adds up busy seconds; the rest of the threads' time is waiting.

    Args:
        workers: threads that read and decode, in each process.
        processes: how many.
        writers: threads that encode and commit, in each process.
        streams: batches explained at the same time, in each process.
    """

    def __init__(
        self, workers: int = 1, processes: int = 1, writers: int = 1, streams: int = 1
    ) -> None:
        self._busy = dict.fromkeys(STAGES, 0.0)
        self._threads = {
            ("read", "decode"): workers * processes,
            ("batch",): processes,
            ("explain",): streams * processes,
            ("encode", "commit"): writers * processes,
        }
        self._start = perf_counter()

    def add(self, seconds: dict[str, float]) -> None:
        """Add a batch's seconds per stage; call it from one thread only."""
        for stage, value in seconds.items():
            self._busy[stage] += value

    @property
    def wall_s(self) -> float:
        """Seconds since the start."""
        return perf_counter() - self._start

    @property
    def bottleneck(self) -> str:
        """The stage whose threads wait least (the larger one where two share threads)."""
        group = max(self._threads, key=lambda g: sum(self._busy[s] for s in g) / self._threads[g])
        return max(group, key=lambda stage: self._busy[stage])

    def seconds(self) -> dict[str, StageSeconds]:
        """Stage -> seconds so far."""
        wall = self.wall_s
        result = {}
        for group, threads in self._threads.items():
            waiting = max(0.0, threads * wall - sum(self._busy[stage] for stage in group))
            for stage in group:
                result[stage] = StageSeconds(round(self._busy[stage], 4), round(waiting, 4))
        return result
