"""How many cores a process may use: by its affinity, and by quotas of both versions."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from combicam import cores
from combicam.cores import usable_cores
from combicam.engine.evaluation.config import EvaluateConfig
from combicam.engine.evaluation.recommend import RecommendConfig
from combicam.engine.run.config import RunConfig
from combicam.export.models.models import ModelConfig

V1, V2 = "4:cpu,cpuacct:/pods/mine\n0::/\n", "0::/pods/mine\n"


@pytest.fixture(autouse=True)
def _sixteen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(16)), raising=False)


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("text", "expected"),
    [("max 100000\n", 16), ("400000 100000\n", 4), ("150000 100000\n", 2), ("1000 100000\n", 1)],
)
@pytest.mark.parametrize("group", ["", "pods/", "pods/mine/"])
def test_version_2(tmp_path: Path, group: str, text: str, expected: int) -> None:
    """The group itself, one around it, or the root where a container sees none of them."""
    files = {"proc/self/cgroup": V2, f"sys/fs/cgroup/{group}cpu.max": text}
    assert usable_cores(write(tmp_path, files)) == expected


@pytest.mark.parametrize(("quota", "expected"), [("-1", 16), ("250000", 5), ("9900000", 16)])
def test_version_1(tmp_path: Path, quota: str, expected: int) -> None:
    folder = "sys/fs/cgroup/cpu,cpuacct/pods/"
    files = {f"{folder}cpu.cfs_quota_us": f"{quota}\n", f"{folder}cpu.cfs_period_us": "50000\n"}
    assert usable_cores(write(tmp_path, {"proc/self/cgroup": V1, **files})) == expected


def test_the_narrowest_counts(tmp_path: Path) -> None:
    files = {"pods/mine/cpu.max": "800000 100000", "pods/cpu.max": "300000 100000"}
    files = {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    assert usable_cores(write(tmp_path, {"proc/self/cgroup": V2, **files})) == 3


def test_without_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert usable_cores(tmp_path) == 16
    monkeypatch.delattr(os, "sched_getaffinity")
    assert usable_cores(tmp_path) == os.cpu_count()


def test_commands_take_a_worker_for_each(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(77)))
    monkeypatch.setattr(cores, "_quotas", lambda _root: iter([32.5]))
    model = ModelConfig("demo")
    configs = (
        RunConfig("in", tmp_path, model),
        EvaluateConfig("in", model),
        RecommendConfig("in", model),
    )
    assert [config.workers for config in configs] == [33] * 3


@pytest.mark.parametrize(("given", "threads"), [("", 1), ("2", 2)])
def test_torch_gets_as_many_threads(tmp_path: Path, given: str, threads: int) -> None:
    """Whether it is imported already or not; what the user sets holds."""
    root = write(tmp_path, {"proc/self/cgroup": V2, "sys/fs/cgroup/cpu.max": "50000 100000"})
    script = f"""if True:
        import functools, os, pathlib, sys
        os.sched_getaffinity = lambda _pid: set(range(16))
        from combicam import cores
        cores.usable_cores = functools.partial(cores.usable_cores, pathlib.Path({str(root)!r}))
        if sys.argv[1] == "before":
            import torch
            torch.set_num_threads(2)
        cores.fit_threads()
        import torch
        print(torch.get_num_threads())
    """
    environment = {k: v for k, v in os.environ.items() if k != cores._VARIABLE}
    environment |= {cores._VARIABLE: given} if given else {}
    for when in ("before", "after"):
        command = [sys.executable, "-c", script, when]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
        assert int(done.stdout) == threads
