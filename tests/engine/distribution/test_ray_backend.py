"""A real Ray cluster of this machine, two workers; what needs none is quick."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import spawned
from fakes import configured
from PIL import Image

from combicam.demo.tour import write_postcards
from combicam.engine.distribution.ray_backend import Room, fitted
from combicam.engine.distribution.ray_data import Explain
from combicam.engine.run.config import RunConfig
from combicam.engine.runner import run, run_images
from combicam.errors import MissingExtra, RunError
from combicam.export.models.models import ModelConfig
from combicam.export.spec import CamSpec

TESTS = Path(__file__).parents[2]
SPEC = CamSpec(layers="stages")
ONLY_OF_RUNS = ("id", "uri")


@pytest.fixture(scope="module")
def postcards_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten postcards and a broken file in ``photos``, explained in ``run``."""
    folder = tmp_path_factory.mktemp("ray")
    write_postcards(folder, 10, seed=500)
    (folder / "photos" / "broken.jpg").write_bytes(b"no jpeg")
    run(
        RunConfig(
            str(folder / "photos"),
            folder / "run",
            ModelConfig("demo"),
            SPEC,
            batch_size=11,
            progress=False,
        )
    )
    return folder


@pytest.fixture(scope="module")
def explain() -> Explain:
    return Explain("demo", SPEC)


def rows(folder: Path) -> list[dict[str, Any]]:
    found = pq.read_table(folder / "run" / "shards" / "00000.parquet").to_pylist()
    return [{k: v for k, v in row.items() if k not in ONLY_OF_RUNS} for row in found]


def files(folder: Path) -> list[Path]:
    return sorted((folder / "photos").iterdir())


def test_batches_of_bytes_give_the_rows_of_a_run(postcards_run: Path, explain: Explain) -> None:
    paths = files(postcards_run)
    batch = {
        "bytes": np.array([p.read_bytes() for p in paths], object),
        "path": np.array([p.name for p in paths]),
        "place": np.arange(22.0).reshape(11, 2),
    }
    table = explain(batch)
    assert table.column("path").to_pylist() == [p.name for p in paths]
    assert table.column("place").to_pylist() == batch["place"].tolist()
    assert table.drop_columns(["path", "place"]).to_pylist() == rows(postcards_run)
    assert table.column("status").to_pylist().count("decode_error") == 1


def test_batches_of_images_give_the_rows_of_a_run(postcards_run: Path, explain: Explain) -> None:
    paths = [p for p in files(postcards_run) if p.name != "broken.jpg"]
    images = np.empty(len(paths), object)  # their sizes differ
    images[:] = [np.asarray(Image.open(p).convert("RGB")) for p in paths]
    found = explain({"image": images}).to_pylist()
    expected = [row for row in rows(postcards_run) if row["status"] == "ok"]
    assert [r["targets"] for r in found] == [r["targets"] for r in expected]
    for one, other in zip(found, expected, strict=True):
        heatmaps = [np.frombuffer(r["heatmap"], np.uint8).astype(int) for r in (one, other)]
        assert np.abs(heatmaps[0] - heatmaps[1]).max() <= 2  # a batch of another size
        assert (one["width"], one["height"]) == (other["width"], other["height"])


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ({"photo": np.zeros(1)}, "'bytes' or 'image', got columns"),
        ({"bytes": np.zeros(1), "image": np.zeros(1)}, "'bytes' or 'image', got columns"),
        ({"image": np.zeros((2, 8, 8, 3), np.float32)}, "uint8.*float32"),
        ({"image": np.zeros((2, 8, 8, 4), np.uint8)}, r"uint8 \[H,W,3\]"),
        ({"image": np.zeros((2, 0, 8, 3), np.uint8)}, r"images with pixels, got \(0, 8, 3\)"),
    ],
)
def test_other_batches_are_refused(explain: Explain, batch: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        explain(batch)


@pytest.mark.parametrize(
    ("machines", "on_gpus", "cpus", "expected"),
    [
        ([{"CPU": 16, "GPU": 4}, {"CPU": 32, "GPU": 4}, {"CPU": 8}], True, None, Room(8, 4, 1)),
        ([{"CPU": 16, "GPU": 4}], True, 8, Room(2, 8, 1)),
        ([{"CPU": 16, "GPU": 4}], False, None, Room(4, 4, 0)),
        ([{"CPU": 10}, {"CPU": 7}], True, None, Room(3, 4, 0)),
        ([{"CPU": 10}, {"CPU": 1}], True, 3, Room(3, 3, 0)),
        ([{"CPU": 2}, {}], True, None, Room(1, 2, 0)),
    ],
)
def test_actors_that_a_cluster_has_room_for(
    machines: list[dict[str, float]], on_gpus: bool, cpus: int | None, expected: Room
) -> None:
    assert fitted(machines, on_gpus, cpus) == expected


@pytest.mark.parametrize(("machines", "cpus"), [([{"CPU": 2}], 3), ([{}], None)])
def test_no_room_is_an_error(machines: list[dict[str, float]], cpus: int | None) -> None:
    with pytest.raises(RunError, match="room for an actor"):
        fitted(machines, True, cpus)


def test_missing_extra_is_named(
    tmp_path: Path, photos: Any, fake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos(tmp_path / "in", 3)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"combicam\[ray\]"):
        run(configured(tmp_path, ray="local"), fake())


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": str(TESTS)}},
    )
    yield ray
    ray.shutdown()


def kill_one_in_the_middle(tmp_path: Path) -> Thread:
    def kill() -> None:
        deadline = time.monotonic() + 120
        while len(list((tmp_path / "run" / "shards").glob("*.parquet"))) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(int(next((tmp_path / "pids").iterdir()).name), signal.SIGKILL)

    thread = Thread(target=kill)
    thread.start()
    return thread


@pytest.mark.slow
def test_killed_actor_loses_nothing_and_bytes_are_those_of_one_machine(
    cluster: Any, tmp_path: Path, photos: Any, fake: Any
) -> None:
    photos(tmp_path / "in", 120)[40].write_bytes(b"")
    run_images(configured(tmp_path, output=tmp_path / "whole"), fake())
    killer = kill_one_in_the_middle(tmp_path)
    summary = run(configured(tmp_path, ray="local", ray_cpus=1), fake(), make=spawned.slow)
    killer.join()
    shards = sorted((tmp_path / "whole" / "shards").glob("*.parquet"))
    assert len(shards) == 15
    for path in shards:
        assert (tmp_path / "run" / "shards" / path.name).read_bytes() == path.read_bytes()
    assert summary.images == summary.new_images == 120
    assert summary.failures == {"decode_error": 1}
    assert len(list((tmp_path / "pids").iterdir())) == 3  # two, and the one that took over
    events = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").open()]
    assert len([e for e in events if e["event"] == "worker_died"]) == 1
    assert not list((tmp_path / "run" / "shards").glob(".*"))


@pytest.mark.slow
def test_actor_of_another_network_is_refused(
    cluster: Any, tmp_path: Path, photos: Any, fake: Any
) -> None:
    photos(tmp_path / "in", 3)
    with pytest.raises(RunError, match="got another weights"):
        run(configured(tmp_path, ray="local", ray_cpus=1), fake(), make=spawned.other)


@pytest.mark.slow
def test_dataset_of_photos(cluster: Any, postcards_run: Path) -> None:
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    dataset = ray.data.read_binary_files(str(postcards_run / "photos"), include_paths=True)
    explained = dataset.map_batches(
        Explain,
        fn_constructor_kwargs={"model": "demo", "cam": SPEC},
        batch_size=11,
        concurrency=1,
    )
    found = sorted(explained.take_all(), key=lambda row: row["path"])
    paths = [Path(row.pop("path")).name for row in found]
    assert paths == [p.name for p in files(postcards_run)]
    expected = rows(postcards_run)
    assert [r["status"] for r in found] == [r["status"] for r in expected]
    assert [r["targets"] for r in found] == [r["targets"] for r in expected]
    assert [r["class_name"] for r in found] == [r["class_name"] for r in expected]
