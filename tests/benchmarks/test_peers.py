"""Every peer at once on a tiny network: checked, tuned, timed; failures are rows."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import libraries
from benchmarks import peers as module
from benchmarks.harness import Result
from benchmarks.libraries import AUTHORS, LIBRARIES
from benchmarks.peers import (
    PeersConfig,
    Setting,
    Work,
    best_batch,
    error,
    explain_with,
    measure_one,
    peers,
    peers_table,
)

CASE = "resnet18-tiny"


@pytest.fixture(scope="module")
def setting() -> Setting:
    return Setting.of(CASE, "cpu")


def configured(*names: str, **changes: Any) -> PeersConfig:
    values: dict[str, Any] = {"rounds": 1, "largest": 2, "output": Path("unused")}
    values |= {"allocators": ("default",)}
    return PeersConfig((CASE,), names, **values | changes)


@pytest.mark.slow
def test_libraries_give_our_maps_and_failures_are_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PEERS", (*module.PEERS, "combicam, nothing"))
    rows = peers(configured(*LIBRARIES, "combicam, eager", "combicam, nothing"), print)
    assert [row.name for row in rows if row.error is None] == [
        *LIBRARIES,
        "combicam, eager",
    ]
    assert all(0 <= row.max_abs_err < 1e-3 for row in rows[:-1])  # type: ignore[operator]
    assert rows[3].params["batch"] == 1 and rows[-1].error is not None
    sent = [row.params["host_bytes"] for row in rows[:2]]
    # layer1 to layer4 of 64 x 64 photos, activations and gradients, and one heatmap.
    assert sent == [2 * 4 * (64 * 256 + 128 * 64 + 256 * 16 + 512 * 4), 4 * 64 * 64]
    table = peers_table(rows)
    assert table.count("\n") == 7 and "failed: ValueError" in table


def test_wrong_maps_have_no_speed(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Setting, "of", lambda *_: setting)
    wrong = {**LIBRARIES, "captum": lambda *_: lambda images: images[:, 0]}
    monkeypatch.setattr(libraries, "LIBRARIES", wrong)
    row = measure_one(Work("captum", CASE, configured("captum"), "default"), print)
    assert row.images_per_s is None and row.error is not None and "beyond" in row.error


def test_the_best_batch_is_found_and_memory_ends_the_search(setting: Setting) -> None:
    tried = []

    def explain(images: torch.Tensor) -> None:
        tried.append(len(images))
        if len(images) > 4:
            raise torch.OutOfMemoryError
        time.sleep(0.01)  # as fast for 4 images as for 1

    assert best_batch(explain, setting, 1, 64)[0] == 4
    assert tried == [1] * 4 + [2] * 4 + [4] * 4 + [8]


def test_the_search_ends_where_larger_batches_are_slower_or_take_long(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def explain(images: torch.Tensor) -> None:
        tried.append(len(images))
        time.sleep(0.005 * len(images) ** 2)

    assert best_batch(explain, setting, 1, 64)[0] == 1
    assert set(tried) == {1, 2}
    monkeypatch.setattr(module, "_PATIENCE", 0.005)
    tried.clear()
    best_batch(explain, setting, 1, 64)
    assert tried == [1, 1]


def test_our_backends_are_compared_with_ours(setting: Setting) -> None:
    assert error("combicam, eager", explain_with("combicam, eager", setting), setting) < 1e-4
    assert AUTHORS in module.PEERS


def test_a_spent_budget_is_a_row() -> None:
    rows = peers(configured("captum", budget=0.0), print)
    assert [row.error for row in rows] == ["not begun: the budget was spent"]
    rows = peers(configured("captum", budget=0.5), print)
    assert [row.error for row in rows] == ["not finished: the budget was spent"]


def test_a_process_that_dies_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.sys, "executable", "false")
    (row,) = peers(configured("captum"), print)
    assert row.images_per_s is None and row.error == "it printed nothing (exit 1)"


@pytest.mark.slow
def test_memory_grows_with_the_batch() -> None:
    config = configured("combicam, eager")
    one, many = (
        measure_one(Work("combicam, eager", CASE, config, "default", n), print).params["peak_mib"]
        for n in (1, 64)
    )
    assert 0 <= one < many


def test_allocators_are_columns() -> None:
    def row(name: str, allocator: str, speed: float | None) -> Result:
        params = {
            "case": CASE,
            "allocator": allocator,
            "batch": 4,
            "host_bytes": 1e3,
            "peak_mib": 7,
        }
        error = None if speed else "broken"
        return Result(name, params, images_per_s=speed, max_abs_err=1e-3, error=error)

    rows = [
        *(row("captum", "default", 1.0), row("captum", "tuned", 2.0)),
        *(row("combicam, eager", "default", 4.0), row("combicam, eager", "tuned", 10.0)),
        *(row("combicam, aoti", "default", 5.0), row("combicam, aoti", "tuned", None)),
        row("torchcam", "default", None),
    ]
    assert peers_table(rows).splitlines()[2:] == [
        "| captum | 1.00 | 5.0 | 2.00 | 5.0 | 4 | 7 | 1 | 1e-03 |",
        "| combicam, eager | 4.00 | 1.2 | 10.00 | 1.0 | 4 | 7 | 1 | 1e-03 |",
        "| combicam, aoti | 5.00 | 1.0 |  |  | 4 | 7 | 1 | 1e-03 |",
        "| torchcam | failed: broken | | | | | | | |",
    ]
