"""The parts of the pipeline by themselves."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from fakes import configured
from hypothesis import given
from hypothesis import strategies as st
from spawned import Slow

from combicam.engine.inputs.entry import Entry
from combicam.engine.inputs.listing import list_inputs
from combicam.engine.inputs.manifest import Manifest, write_manifest
from combicam.engine.pipeline.batch import even_batch_size
from combicam.engine.pipeline.channel import Aborted, Channel
from combicam.engine.pipeline.load import load_in_order
from combicam.engine.pipeline.pipeline import Pipeline
from combicam.engine.run.directory import RunDirectory, committed_shards
from combicam.engine.run.plan import plan_run
from combicam.engine.run.stage_times import StageTimes
from combicam.engine.run.work import ShardReport, ShardWork
from combicam.export.preprocess import Preprocess


@given(st.integers(1, 3000), st.integers(1, 600))
def test_even_batches_are_as_few_and_waste_little(images: int, limit: int) -> None:
    size = even_batch_size(images, limit)
    fewest = -(-images // limit)
    assert 1 <= size <= limit
    assert -(-images // size) <= fewest
    assert size * fewest - images < fewest


def test_channel_keeps_order_and_bounds_what_waits() -> None:
    channel: Channel[int] = Channel(2)
    put: list[int] = []

    def feed() -> None:
        for i in range(20):
            channel.put(i)
            put.append(i)
        channel.close()

    thread = Thread(target=feed)
    thread.start()
    taken = []
    for item in channel:
        time.sleep(0.002)
        assert len(put) - len(taken) <= 4
        taken.append(item)
    thread.join()
    assert taken == list(range(20))


@pytest.mark.parametrize("side", ["put", "take"])
def test_abort_wakes_who_waits(side: str) -> None:
    channel: Channel[int] = Channel(1)
    seen: list[str] = []

    def wait() -> None:
        try:
            if side == "put":
                channel.put(1)
                channel.put(2)
            else:
                list(channel)
        except Aborted:
            seen.append(side)

    thread = Thread(target=wait)
    thread.start()
    time.sleep(0.05)
    assert thread.is_alive()
    channel.abort()
    thread.join(5)
    assert seen == [side]


def test_loading_looks_no_further_ahead_than_its_window(tmp_path: Path, photos: Any) -> None:
    taken: list[int] = []

    def entries() -> Any:
        for i, path in enumerate(photos(tmp_path, 30)):
            assert i - len(taken) <= 5
            yield Entry(str(i), str(path))

    with ThreadPoolExecutor(3) as pool:
        for item in load_in_order(entries(), pool, 5, Preprocess((8, 8))):
            taken.append(int(item.record.entry.id))
    assert taken == list(range(30))


def test_bottleneck_is_the_stage_whose_threads_wait_least() -> None:
    times = StageTimes(workers=4)
    times.add({"read": 1.0, "decode": 5.0, "explain": 1.4})
    assert times.bottleneck == "decode"  # 6 s by 4 threads
    times.add({"explain": 0.2})
    assert times.bottleneck == "explain"
    times.add({"encode": 0.9, "commit": 0.8})
    assert times.bottleneck == "encode"


def test_pipeline_takes_shards_one_after_another(tmp_path: Path, photos: Any, fake: Any) -> None:
    photos(tmp_path / "in", 9)
    config = configured(tmp_path, shard_size=4)
    with RunDirectory(config.output) as run:
        run.prepare({}, lambda path: write_manifest(path, list_inputs(config.input), 4))
        with Manifest(run.layout.manifest) as manifest:
            pipeline = Pipeline(config, plan_run(config, fake()), run.layout, manifest)
            done = [sum(pipeline.process([ShardWork(shard)]), ShardReport()) for shard in (2, 0)]
            assert committed_shards(run.layout) == {0, 2}
            assert [report.images for report in done] == [1, 4]


def test_closed_pipeline_leaves_no_half_shard(tmp_path: Path, photos: Any) -> None:
    photos(tmp_path / "in", 64)
    config = configured(tmp_path, shard_size=16)
    with RunDirectory(config.output) as run:
        run.prepare({}, lambda path: write_manifest(path, list_inputs(config.input), 16))
        with Manifest(run.layout.manifest) as manifest:
            pipeline = Pipeline(config, plan_run(config, Slow(0.02)), run.layout, manifest)
            reports = pipeline.process(ShardWork(shard) for shard in range(4))
            done = ShardReport()
            while done.shard is None:
                done += next(reports)
            reports.close()
            names = {path.name for path in run.layout.shards.iterdir()}
            assert "00000.parquet" in names and "00003.parquet" not in names
            assert not [name for name in names if name.startswith(".")]
