"""Who gets which shard, and what a death costs; workers are lists, or threads of this process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes import configured

from combicam.engine.distribution.executor import (
    Backlog,
    DistributedExecutor,
    Ready,
    WorkerLost,
    shards_ahead,
)
from combicam.engine.distribution.worker import ShardWorker, WorkerTask
from combicam.engine.run.config import RunConfig, StorageConfig
from combicam.engine.run.failure_limit import FailureLimit
from combicam.engine.run.work import ShardReport, ShardWork
from combicam.engine.runner import run_images
from combicam.errors import RunError


class ScriptedBackend:
    """Does a shard per event; dies of those that are poison, and where it is told to."""

    def __init__(
        self,
        config: RunConfig,
        slots: int = 2,
        poison: Iterable[int] = (),
        deaths: Iterable[int] = (),
        starts: int = 100,
    ) -> None:
        self.config = config
        self.slots = slots
        self.poison = set(poison)
        self.deaths = list(deaths)  # shards that kill once
        self.starts = starts
        self.hands: dict[int, list[int]] = {}
        self.most_in_hand = 0
        self.news: list[tuple[int, Any]] = []
        self.done: list[int] = []
        self.stopped = 0

    def start(self, slot: int) -> None:
        self.hands[slot] = []
        self.starts -= 1
        self.news.append((slot, Ready() if self.starts >= 0 else WorkerLost("no memory")))

    def hand(self, slot: int, work: ShardWork) -> None:
        self.hands[slot].append(work.index)
        self.most_in_hand = max(self.most_in_hand, len(self.hands[slot]))

    def events(self, timeout_s: float) -> Iterator[tuple[int, Any]]:
        if self.news:
            yield self.news.pop(0)
            return
        for slot, hand in self.hands.items():
            if not hand:
                continue
            if self.poison & set(hand) or hand[0] in self.deaths:
                self.deaths = [shard for shard in self.deaths if shard != hand[0]]
                yield slot, WorkerLost("SIGKILL")
            else:
                self.done.append(shard := hand.pop(0))
                yield slot, ShardReport(8, 1, f"{shard}.jpg, gone", {"explain": 0.5}, shard)
            return

    def stop(self) -> None:
        self.stopped += 1


def work(count: int) -> list[ShardWork]:
    return [ShardWork(index) for index in range(count)]


def test_every_shard_is_done_once(tmp_path: Path) -> None:
    backend = ScriptedBackend(configured(tmp_path), slots=3)
    executor = DistributedExecutor(backend)
    done = sum(executor.process(work(40)), ShardReport())
    assert sorted(backend.done) == list(range(40))
    assert (done.images, done.failures, done.seconds) == (320, 40, {"explain": 20.0})
    assert executor.times.seconds()["explain"].busy == 20.0
    assert 1 < backend.most_in_hand <= shards_ahead(backend.config)
    assert backend.stopped == 1


def test_small_shards_fill_a_pipeline(tmp_path: Path) -> None:
    """Also in batches of 128, which a worker on a GPU takes by itself."""
    config = configured(tmp_path)
    small = replace(config, batch_size="auto", workers=1, storage=StorageConfig(shard_size=100))
    assert 100 * (shards_ahead(small) - 1) >= 6 * 128
    assert shards_ahead(replace(small, batch_size=8)) == 2


def test_few_shards_are_shared_evenly(tmp_path: Path) -> None:
    backend = ScriptedBackend(configured(tmp_path), slots=3)
    list(DistributedExecutor(backend).process(work(3)))
    assert backend.most_in_hand == 1 and sorted(backend.done) == [0, 1, 2]


@pytest.mark.parametrize("deaths", [[0], [0, 0], [3, 7, 11, 15]])
def test_what_a_dead_worker_had_is_done_by_another(tmp_path: Path, deaths: list[int]) -> None:
    backend = ScriptedBackend(configured(tmp_path), deaths=deaths)
    list(DistributedExecutor(backend).process(work(20)))
    assert sorted(backend.done) == list(range(20))


def test_shard_that_kills_every_worker_ends_the_run_by_name(tmp_path: Path) -> None:
    backend = ScriptedBackend(configured(tmp_path), poison=[6])
    with pytest.raises(RunError, match=r"shard 6 .*3 workers that died.*SIGKILL"):
        list(DistributedExecutor(backend).process(work(20)))
    assert backend.stopped == 1 and 6 not in backend.done


def test_shards_beside_a_deadly_one_are_not_blamed() -> None:
    backlog = Backlog(work(6))
    hand = [backlog.take(()), backlog.take([0])]
    backlog.put_back([item for item in hand if item], "SIGKILL")
    assert backlog.take([2]) == ShardWork(2)  # a worker with something in hand goes on
    suspect = backlog.take(())
    assert suspect == ShardWork(0) and backlog.take([0]) is None  # and this one gets no other
    assert backlog.take(()) == ShardWork(1) and len(backlog) == 3


def test_workers_that_never_start_end_the_run(tmp_path: Path) -> None:
    backend = ScriptedBackend(configured(tmp_path), slots=1, starts=0)
    with pytest.raises(RunError, match=r"worker 0 to start, got 3 that died.*no memory"):
        list(DistributedExecutor(backend).process(work(2)))


def test_too_many_failures_end_the_run(tmp_path: Path) -> None:
    backend = ScriptedBackend(configured(tmp_path))
    executor = DistributedExecutor(backend, FailureLimit(5, failures=2))
    with pytest.raises(RunError, match=r"at most 5 failed images .* \(the last: \d+\.jpg, gone\)"):
        list(executor.process(work(20)))
    assert len(backend.done) == 4 and backend.stopped == 1


def test_interrupt_stops_the_crew(tmp_path: Path) -> None:
    backend = ScriptedBackend(configured(tmp_path))
    with (
        pytest.raises(KeyboardInterrupt),
        closing(DistributedExecutor(backend).process(work(2))) as reports,
    ):
        next(reports)
        assert backend.stopped == 0
        raise KeyboardInterrupt
    assert backend.stopped == 1


@pytest.fixture
def prepared(tmp_path: Path, photos: Any, fake: Any) -> RunConfig:
    """A run of three shards, all of them removed, and the finished one beside it."""
    photos(tmp_path / "in", 22)[3].write_bytes(b"")
    config = configured(tmp_path)
    run_images(replace(config, output=tmp_path / "whole"), fake())
    run_images(config, fake())
    for path in (tmp_path / "run" / "shards").iterdir():
        path.unlink()
    return config


def task(config: RunConfig, fake: Any, make: Any = None) -> WorkerTask:
    return WorkerTask(
        config, config.output, fake().fingerprint(), make=make or (lambda config: fake())
    )


def test_worker_commits_what_one_process_would(prepared: RunConfig, fake: Any) -> None:
    worker = ShardWorker(task(prepared, fake))
    worker.start()
    with ThreadPoolExecutor(3) as pool:
        reports = list(pool.map(worker.process_shard, work(3)))
    worker.stop()
    assert [(r.shard, r.images, r.failures) for r in reports] == [(0, 8, 1), (1, 8, 0), (2, 6, 0)]
    assert all(r.seconds["explain"] >= 0 and r.halvings == 0 for r in reports)
    for path in (prepared.output.with_name("whole") / "shards").glob("*.parquet"):
        assert (prepared.output / "shards" / path.name).read_bytes() == path.read_bytes()


def test_worker_tries_failed_rows_again(prepared: RunConfig, fake: Any) -> None:
    worker = ShardWorker(task(prepared, fake))
    worker.start()
    worker.process_shard(ShardWork(0))
    report = worker.process_shard(ShardWork(0, (3,)))
    worker.stop()
    assert (report.images, report.failures) == (1, 1)


def test_worker_of_another_network_is_refused(prepared: RunConfig, fake: Any) -> None:
    def other(config: RunConfig) -> Any:
        explainer = fake()
        explainer.weights = "other"
        return explainer

    worker = ShardWorker(task(prepared, fake, other))
    with pytest.raises(RunError, match="same explainer, got another weights"):
        worker.start()


def test_errors_of_a_worker_arrive_and_it_goes_on(prepared: RunConfig, fake: Any) -> None:
    class Broken(fake):  # type: ignore[misc]
        def __call__(self, images: Any, /) -> Any:
            if self.batch_sizes:
                return super().__call__(images)
            self.batch_sizes.append(0)
            raise ZeroDivisionError("kernel")

    worker = ShardWorker(task(prepared, fake, lambda config: Broken()))
    worker.start()
    with pytest.raises(RunError, match="ZeroDivisionError: kernel"):
        worker.process_shard(ShardWork(0))
    assert worker.process_shard(ShardWork(0)).images == 8
    worker.stop()
    with pytest.raises(RunError, match="was stopped"):
        worker.process_shard(ShardWork(1))


def test_stopped_worker_leaves_no_half_shard(prepared: RunConfig, fake: Any) -> None:
    begun = []

    class Blocked(fake):  # type: ignore[misc]
        def __call__(self, images: Any, /) -> Any:
            if len(self.batch_sizes) == 1:
                begun.append(pool.submit(worker.stop))
            return super().__call__(images)

    worker = ShardWorker(task(prepared, fake, lambda config: Blocked()))
    worker.start()
    with ThreadPoolExecutor(2) as pool:
        with pytest.raises(RunError, match="was stopped"):
            for index in (0, 1, 2, 0, 1, 2) * 1000:
                worker.process_shard(ShardWork(index))
        begun[0].result()
    assert not [p for p in (prepared.output / "shards").iterdir() if p.name[0] == "."]
