"""Samples are long enough, and a fault costs its row alone."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks import device, harness
from benchmarks.harness import Contender, Result, measure, seconds_per_call

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("warm", [1e-6, 1e-4, 0.02, 0.3])
def test_a_sample_of_a_gpu_is_long_whatever_its_first_call_took(
    warm: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples: list[int] = []

    def on_device(_call: object, calls: int) -> float:
        samples.append(calls)
        return calls * warm + (0.04 if len(samples) == 1 else 0)  # it compiles

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(harness, "_on_device", on_device)
    assert seconds_per_call(lambda: None) == pytest.approx(warm)
    assert samples[-1] * warm >= 0.05 or samples[-1] == 1000
    assert sum(samples) * warm < 1.5


def test_a_fault_costs_its_row_alone() -> None:
    """Of a row, with or without a message; of what makes rows, those behind it."""
    written: list[int] = []

    def rows() -> Iterator[Contender]:
        def no_message() -> None:
            raise RuntimeError

        yield Contender("good", lambda: lambda: 1, 2)
        yield Contender("bad", lambda: no_message, 2)
        yield Contender("wrong", lambda: lambda: 1, 2, check=lambda found: float("nan"))
        raise ValueError("no such network")

    found = measure(rows(), {}, 1, lambda line: None, lambda rows: written.append(len(rows)))
    assert written == [4]
    good, bad, wrong, rest = found
    assert good.error is None and good.images_per_s
    assert str(bad.error).startswith("RuntimeError") and "ArithmeticError" in str(wrong.error)
    assert "no such network" in str(rest.error) and isinstance(rest, Result)


@pytest.mark.parametrize("program", ["no-such-program", "false"])
def test_a_driver_that_says_nothing_ends_nothing(
    program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = device.subprocess.run
    monkeypatch.setattr(
        device.subprocess, "run", lambda command, **options: run([program], **options)
    )
    assert device._driver().startswith("unknown: ")


def test_what_kills_a_process_leaves_the_rounds_before(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    script = f"""if True:
        import os, pathlib, functools
        from benchmarks.harness import Contender, measure, write
        calls = []
        def call():
            calls.append(1)
            if len(calls) == 4:
                os.kill(os.getpid(), 9)
        rows = [Contender("steady", lambda: lambda: None, 1), Contender("fatal", lambda: call, 1)]
        measure(rows, {{}}, 9, print, functools.partial(write, pathlib.Path({str(path)!r})))
    """
    ended = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True)
    assert ended.returncode == -signal.SIGKILL
    cases = json.loads(path.read_text())["cases"]
    assert [(row["name"], len(row["seconds"])) for row in cases] == [("steady", 2), ("fatal", 2)]
