"""Real processes: the same bytes as one, nothing lost when one is killed, none left behind."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
import spawned
from fakes import configured, shard_bytes, start_run, wait_for
from PIL import Image

from combicam import cli
from combicam.engine.distribution import process_backend
from combicam.engine.distribution.process_backend import (
    ProcessBackend,
    named_devices,
    on_its_gpu,
    portable,
)
from combicam.engine.distribution.worker import WorkerTask
from combicam.engine.explain.config import ComputeConfig
from combicam.engine.run.config import RunConfig
from combicam.engine.runner import run, run_images
from combicam.errors import ArtifactError, DecodeError, RunError
from combicam.export.models.models import ModelConfig


def pids(tmp_path: Path) -> list[int]:
    return [int(p.name) for p in (tmp_path / "pids").glob("*")]


def is_alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def kill_one_in_the_middle(tmp_path: Path) -> Thread:
    """Kills the worker that started first, after it has committed a shard."""

    def kill() -> None:
        wait_for(lambda: len(list((tmp_path / "run" / "shards").glob("*.parquet"))) >= 2)
        os.kill(pids(tmp_path)[0], signal.SIGKILL)

    thread = Thread(target=kill)
    thread.start()
    return thread


def test_every_process_starts_with_its_own_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[tuple[str | None, str | None]] = []

    class Process:
        def __init__(self, target: Any, args: Any, name: str, daemon: bool) -> None:
            self.device = args[1].config.compute.device

        def start(self) -> None:
            started.append((os.environ.get("CUDA_VISIBLE_DEVICES"), self.device))

    pipe = lambda: (None, SimpleNamespace(close=lambda: None))  # noqa: E731
    context = SimpleNamespace(Pipe=pipe, Process=Process)
    monkeypatch.setattr(process_backend.multiprocessing, "get_context", lambda how: context)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    task = WorkerTask(configured(tmp_path), tmp_path, {})
    backend = ProcessBackend(task, ["cuda:0", "cuda:1", "cpu"])
    for slot in (1, 0, 2):
        backend.start(slot)
    assert started == [("6", "cuda:0"), ("4", "cuda:0"), ("4,6", "cpu")]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "4,6"


@pytest.mark.long
def test_killed_process_loses_nothing_and_bytes_are_those_of_one(
    tmp_path: Path, photos: Any, fake: Any
) -> None:
    photos(tmp_path / "in", 100)[40].write_bytes(b"")
    run_images(configured(tmp_path, output=tmp_path / "whole"), fake())
    killer = kill_one_in_the_middle(tmp_path)
    summary = run(configured(tmp_path, devices=["cpu", "cpu"]), fake(), make=spawned.slow)
    killer.join()
    assert shard_bytes(tmp_path / "run") == shard_bytes(tmp_path / "whole")
    assert summary.images == summary.new_images == 100
    assert summary.failures == {"decode_error": 1}
    assert summary.stages["explain"].busy > 25 * 0.15
    events = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").open()]
    (death,) = [e for e in events if e["event"] == "worker_died"]
    assert "SIGKILL" in death["reason"]
    assert not any(map(is_alive, pids(tmp_path)))
    assert not list((tmp_path / "run" / "shards").glob(".*"))


@pytest.mark.long
@pytest.mark.parametrize(
    "death", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_no_process_outlives_the_run(tmp_path: Path, photos: Any, death: signal.Signals) -> None:
    photos(tmp_path / "in", 400)
    process = start_run(tmp_path, committed=2, devices=["cpu"])
    assert len(pids(tmp_path)) == 1
    if death == signal.SIGKILL:
        process.kill()
    else:
        os.killpg(process.pid, death)  # as Ctrl-C does
    start = time.monotonic()
    wait_for(lambda: not any(map(is_alive, pids(tmp_path))), 15)
    _, errors = process.communicate(timeout=15)
    assert time.monotonic() - start < 15
    assert process.returncode != 0 and len(shard_bytes(tmp_path / "run")) < 50
    assert not list((tmp_path / "run" / "shards").glob(".*"))
    if death == signal.SIGINT:
        assert errors.count(b"Traceback") == 1 and b"KeyboardInterrupt" in errors


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "words"),
    [("other", "got another weights"), ("unlucky", "worker 0 to start.*SIGABRT")],
)
def test_workers_that_cannot_work_end_the_run(
    tmp_path: Path, photos: Any, fake: Any, make: str, words: str
) -> None:
    photos(tmp_path / "in", 3)
    with pytest.raises(RunError, match=words):
        run(configured(tmp_path, devices=["cpu"]), fake(), make=getattr(spawned, make))
    assert shard_bytes(tmp_path / "run") == {}


def test_all_devices_are_every_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert named_devices(["all"]) == ("cuda:0", "cuda:1")
    assert named_devices(["cpu", "cpu"]) == ("cpu", "cpu")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(ValueError, match="expected a GPU for devices 'all'"):
        named_devices(["all"])


def test_devices_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "in" / "a.png")
    for device, message in (
        ("bogus", "'cpu', 'cuda', .* got 'bogus'"),
        ("meta", "this machine .*meta"),
    ):
        with pytest.raises(ValueError, match=f"device: expected .*{message}"):
            run(configured(tmp_path, compute=ComputeConfig(device=device), model="demo"))
    with pytest.raises(ValueError, match=r"device: expected .* got 'bogus'"):
        run(configured(tmp_path, devices=["cpu", "bogus"], model="demo"))


def test_errors_that_cannot_travel_keep_their_message() -> None:
    class Local(Exception):
        pass

    class Picky(DecodeError):
        def __init__(self, message: str, size: int) -> None:
            super().__init__(message)

    original = ArtifactError("lost")
    assert portable(original) is original
    for error in (Local("lost"), Picky("lost", 3)):
        left = portable(error)
        assert isinstance(left, RunError) and f"{type(error).__name__}: lost" in str(left)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--devices", "cuda:0", "cuda:1"], {"devices": ("cuda:0", "cuda:1"), "ray": None}),
        (["--ray"], {"devices": (), "ray": "local", "ray_cpus": None}),
        (["--ray", "ray://head:10001", "--ray-cpus", "2"], {"ray": "ray://head:10001"}),
        ([], {"devices": (), "ray": None}),
    ],
)
def test_flags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], expected: dict[str, Any]
) -> None:
    seen: list[RunConfig] = []
    monkeypatch.setattr("combicam.commands.run.main", seen.append)
    cli.main(["run", "in", "-o", str(tmp_path / "run"), "-m", "demo", *flags])
    assert expected.items() <= vars(seen[0].distribution).items()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"devices": ["all", "cpu"]}, "'all' or a list"),
        ({"devices": "cpu"}, "devices as a list"),
        ({"devices": ["cpu"], "ray": "local"}, "devices or ray"),
        ({"ray_cpus": 2}, "together with ray"),
        ({"ray": "local", "ray_cpus": 0}, "ray_cpus >= 1"),
    ],
)
def test_places_that_exclude_each_other(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        configured(tmp_path, **changes)


def test_explainer_in_memory_is_not_shared(tmp_path: Path, fake: Any) -> None:
    with pytest.raises(ValueError, match=r"use combicam\.run"):
        run_images(configured(tmp_path, devices=["cpu"]), fake())


@pytest.mark.parametrize(
    ("device", "before", "after", "used"),
    [
        ("cuda:1", None, "1", "cuda:0"),
        ("cuda:1", "4,7", "7", "cuda:0"),
        ("cuda:2", "4,7", None, "cuda:2"),
        ("cuda:0", "", None, "cuda:0"),
        ("cuda", "4,7", None, "cuda"),
        ("cpu", None, None, "cpu"),
        (None, "3", None, None),
    ],
)
def test_a_process_sees_its_own_gpu_alone(
    device: str | None, before: str | None, after: str | None, used: str | None
) -> None:
    config = RunConfig("photos", Path("out"), ModelConfig("demo"), compute=ComputeConfig(device))
    environ = {} if before is None else {"CUDA_VISIBLE_DEVICES": before}
    task, visible = on_its_gpu(WorkerTask(config, Path("out"), {}), environ)
    assert task.config.compute.device == used
    assert visible == after
