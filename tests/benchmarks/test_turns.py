"""Processes that prepare at once and are timed in turn: none that fails ends the others."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest
import tyro

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import device
from benchmarks.__main__ import COMMANDS
from benchmarks.device import GPU_TESTS, PLAN, DeviceConfig, run_device
from benchmarks.turns import Group, run_wave

SCRIPT = """
import os, sys, time
from pathlib import Path
from benchmarks.turns import wait_for_turn
name, what, times = sys.argv[1:]
if what == "crash": raise ArithmeticError
if what == "late": time.sleep(60)
wait_for_turn()
if what == "die": os.kill(os.getpid(), 9)
if what == "hang": os.system("sleep 60")
begun = time.time(); time.sleep(0.2)
with open(times, "a") as file: file.write(f"{name} {begun} {time.time()}\\n")
"""


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "script.py").write_text(SCRIPT)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(__file__).parents[2]}")

    def made(name: str, what: str = "time", prepare_s: float = 20, timed_s: float = 20) -> Group:
        return Group(name, ("script", name, what, "{output}/times"), prepare_s, timed_s)

    return made


@pytest.mark.long
def test_turns_do_not_overlap_and_faults_stay_alone(tmp_path: Path, group) -> None:
    groups = [
        group("crashes", "crash"),
        group("first"),
        group("late", "late", prepare_s=6),
        group("dies", "die"),
        group("hangs", "hang", timed_s=1),
        group("second"),
    ]
    outcomes = {o.name: o for o in run_wave(groups, tmp_path, time.monotonic() + 60)}
    assert {name: o.how for name, o in outcomes.items()} == {
        "crashes": "ended",
        "first": "ended",
        "late": "late",
        "dies": "ended",
        "hangs": "stopped",
        "second": "ended",
    }
    assert outcomes["first"].code == outcomes["second"].code == 0
    assert outcomes["crashes"].code == 1 and outcomes["dies"].code == -9
    assert "ArithmeticError" in (tmp_path / "crashes.log").read_text()
    lines = [line.split() for line in (tmp_path / "times").read_text().splitlines()]
    assert [line[0] for line in lines] == ["first", "second"]
    assert float(lines[0][2]) <= float(lines[1][1])
    assert not list(tmp_path.glob("*.ready")) and not list(tmp_path.glob("*.go"))


def test_nothing_outlives_the_budget(
    tmp_path: Path, group, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = {"a": [group("late", "late")], "b": [group("first")], "c": [group("never")]}
    monkeypatch.setattr(device, "PLAN", plan)
    started = time.monotonic()
    run_device(DeviceConfig(budget=4, waves=("a+b", "c"), output=tmp_path))
    assert time.monotonic() - started < 10
    record = json.loads((tmp_path / "device.json").read_text())
    assert [g["how"] for g in record["groups"]] == ["late", "stopped", "not begun"]
    # Another call keeps what it does not repeat.
    monkeypatch.setattr(device, "PLAN", {"b": [group("first")]})
    run_device(DeviceConfig(budget=30, waves=("b",), output=tmp_path))
    groups = json.loads((tmp_path / "device.json").read_text())["groups"]
    assert {g["name"]: g["how"] for g in groups} == {
        "late": "late",
        "never": "not begun",
        "first": "ended",
    }


def test_the_plan() -> None:
    names = [group.name for groups in PLAN.values() for group in groups]
    assert len(set(names)) == len(names)
    with pytest.raises(ValueError, match=r"expected waves of .*, got \['nothing'\]"):
        DeviceConfig(waves=("kernels+nothing",))


@pytest.mark.parametrize(
    "group", [g for groups in PLAN.values() for g in groups if g.command[0] == "benchmarks"]
)
def test_every_command_of_the_plan_is_one(
    group: Group, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device.torch.cuda, "is_available", lambda: True)
    name, *arguments = (part.format(output=tmp_path) for part in group.command[1:])
    config, _ = COMMANDS[name]
    made = tyro.cli(config, args=arguments)
    assert made.output == tmp_path / f"{group.name}.json"


def test_the_plan_has_every_test_that_needs_a_gpu() -> None:
    tests = Path(__file__).parents[1]
    mark = "mark." + "gpu"
    marked = [p for p in tests.rglob("test_*.py") if mark in p.read_text(encoding="utf-8")]
    assert {str(path.relative_to(tests.parent)) for path in marked} == {*GPU_TESTS}
