"""Shards are encoded in parallel, and committed in order, with the same bytes."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import FakeExplainer, configured, shard_bytes

from combicam.engine.inputs.entry import Entry
from combicam.engine.pipeline import commit
from combicam.engine.pipeline.batch import Batch
from combicam.engine.pipeline.channel import Aborted
from combicam.engine.pipeline.commit import write_shards, writer_threads
from combicam.engine.pipeline.explain_stage import ExplainedBatch
from combicam.engine.run.directory import committed_shards
from combicam.engine.run.failure_limit import FailureLimit
from combicam.engine.run.layout import RunLayout
from combicam.engine.run.plan import RunPlan, plan_run
from combicam.engine.run.work import ShardWork
from combicam.engine.shards import writer as writer_module
from combicam.engine.shards.quantise import quantise
from combicam.engine.shards.row_format import Record
from combicam.engine.shards.writer import ShardWriter
from combicam.errors import RunError

SHARDS, BATCHES, IMAGES = 7, 3, 5


def batches(plan: RunPlan, failed: int | None = None) -> Iterator[ExplainedBatch]:
    """Of every shard; one image of the shard ``failed`` could not be decoded."""
    for shard in range(SHARDS):
        for part in range(BATCHES):
            rows = range(part * IMAGES, (part + 1) * IMAGES)
            records = [Record(Entry(f"{shard}-{row}", f"/{row}.jpg")) for row in rows]
            if shard == failed:
                records[0] = Record(records[0].entry, "decode_error", "broken")
            count = sum(record.status == "ok" for record in records)
            generator = torch.Generator().manual_seed(100 * shard + part)
            images = torch.randint(0, 256, (count, 24, 32, 3), generator=generator)
            results = quantise(plan.explainer(images.to(torch.uint8)), plan.rows.maps)
            batch = Batch(ShardWork(shard), records, list(rows), None, count)
            batch.is_last = part == BATCHES - 1
            batch.add_seconds("explain", 1.0)
            yield ExplainedBatch(batch, results)


@pytest.fixture
def plan(tmp_path: Path) -> RunPlan:
    return plan_run(configured(tmp_path), FakeExplainer())


def written(
    folder: Path, plan: RunPlan, writers: int, limit: FailureLimit | None = None, **given: Any
) -> tuple[RunLayout, list[Any]]:
    folder.mkdir()
    layout = RunLayout(folder)
    layout.shards.mkdir()
    layout.records.mkdir()
    items = batches(plan, **given)
    return layout, list(write_shards(items, layout, plan.rows, limit or FailureLimit(), writers))


def test_any_number_of_writers_gives_the_same(tmp_path: Path, plan: RunPlan) -> None:
    one, expected = written(tmp_path / "one", plan, 1, failed=2)
    for writers in (2, 4, 20):
        many, reports = written(tmp_path / f"{writers}", plan, writers, failed=2)
        assert shard_bytes(many.path) == shard_bytes(one.path)
        assert [(r.shard, r.images, r.failures) for r in reports] == [
            (r.shard, r.images, r.failures) for r in expected
        ]
    assert [r.shard for r in expected if r.shard is not None] == list(range(SHARDS))
    assert {r.seconds["explain"] for r in expected} == {1.0}
    assert sum(r.failures for r in expected) == BATCHES


def test_shards_are_committed_in_order_though_the_first_is_slow(
    tmp_path: Path, plan: RunPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    at_once: Counter[int] = Counter()
    later = threading.Event()
    add, end = ShardWriter.add, ShardWriter.commit

    def slow(self: ShardWriter, *given: Any) -> None:
        at_once[threading.get_ident()] += 1
        if self._path.stem == "00000":
            assert later.wait(30)  # until another shard is encoded
        elif self._path.stem == "00002":
            later.set()
        add(self, *given)

    def noted(self: ShardWriter) -> None:
        order.append(self._path.stem)
        end(self)

    monkeypatch.setattr(ShardWriter, "add", slow)
    monkeypatch.setattr(ShardWriter, "commit", noted)
    written(tmp_path / "run", plan, 3)
    assert order == [f"{i:05d}" for i in range(SHARDS)]
    assert len(at_once) == 3


def test_shards_wait_for_the_disk_at_the_same_time(
    tmp_path: Path, plan: RunPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first is committed once the second is on the disk; it would wait for ever otherwise."""
    second = threading.Event()
    commit_one = ShardWriter.commit

    def on_disk(path: Path) -> None:
        if "00001" in path.name:
            second.set()

    def patient(self: ShardWriter) -> None:
        if "00000" in self._path.name:
            assert second.wait(20)
        commit_one(self)

    monkeypatch.setattr(writer_module, "sync", on_disk)
    monkeypatch.setattr(ShardWriter, "commit", patient)
    layout, _ = written(tmp_path / "run", plan, writers=2)
    assert committed_shards(layout) == set(range(SHARDS))


@pytest.mark.parametrize("writers", [1, 3])
def test_too_many_failures_end_the_run(tmp_path: Path, plan: RunPlan, writers: int) -> None:
    with pytest.raises(RunError, match="at most 1 failed images"):
        written(tmp_path / "run", plan, writers, FailureLimit(1), failed=3)
    layout = RunLayout(tmp_path / "run")
    assert committed_shards(layout) <= {0, 1, 2}
    assert not list((tmp_path / "run").glob(".*.tmp"))


@pytest.mark.parametrize("writers", [1, 3])
def test_a_full_disk_ends_the_run(
    tmp_path: Path, plan: RunPlan, monkeypatch: pytest.MonkeyPatch, writers: int
) -> None:
    end = ShardWriter.commit

    def full(self: ShardWriter) -> None:
        if self._path.stem == "00002":
            raise OSError(28, "No space left on device")
        end(self)

    monkeypatch.setattr(ShardWriter, "commit", full)
    with pytest.raises(OSError, match="No space"):
        written(tmp_path / "run", plan, writers)
    assert committed_shards(RunLayout(tmp_path / "run")) == {0, 1}
    assert not list((tmp_path / "run").glob(".*.tmp"))


@pytest.mark.parametrize("writers", [1, 3])
def test_an_abort_drops_what_is_open(tmp_path: Path, plan: RunPlan, writers: int) -> None:
    folder = tmp_path / "run"
    layout = RunLayout(folder)
    for path in (folder, layout.shards, layout.records):
        path.mkdir()

    def some() -> Iterator[ExplainedBatch]:
        for number, item in enumerate(batches(plan)):
            if number == 4 * BATCHES + 1:
                raise Aborted
            yield item

    with pytest.raises(Aborted):
        list(write_shards(some(), layout, plan.rows, FailureLimit(), writers))
    assert committed_shards(layout) <= {0, 1, 2, 3}
    assert not list(folder.glob(".*.tmp"))
    assert not [t for t in threading.enumerate() if t.name.startswith("combicam-write")]


def test_memory_is_bounded(tmp_path: Path, plan: RunPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches wait for a writer by bytes, two at least."""
    monkeypatch.setattr(commit, "_WAITING_BYTES", 0)
    go, taken = threading.Event(), []
    add = ShardWriter.add

    def waiting(self: ShardWriter, *given: Any) -> None:
        assert go.wait(30)
        add(self, *given)

    def items() -> Iterator[ExplainedBatch]:
        for item in batches(plan):
            taken.append(item)
            if len(taken) == 4:  # one in the writer, two waiting, this one
                go.set()
            assert len(taken) <= 4 or go.is_set()
            yield item

    monkeypatch.setattr(ShardWriter, "add", waiting)
    folder = tmp_path / "run"
    layout = RunLayout(folder)
    for path in (folder, layout.shards, layout.records):
        path.mkdir()
    list(write_shards(items(), layout, plan.rows, FailureLimit(), 1))
    assert len(committed_shards(layout)) == SHARDS


def test_writers_of_a_machine() -> None:
    assert [writer_threads("cuda", cores) for cores in (1, 4, 8, 16, 64)] == [1, 1, 2, 4, 4]
    assert writer_threads("cpu", 64) == 1
