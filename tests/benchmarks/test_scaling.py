"""Scaling in small: one thing changes from point to point, memory is measured, plots have lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import scaling as module
from benchmarks.harness import Result, write
from benchmarks.libraries import AUTHORS
from benchmarks.memory import peak_mib_of
from benchmarks.scaling import AXES, EAGER, Point, ScalingConfig, points, scaling
from benchmarks.scaling_page import draw, scaling_table, series


def test_one_thing_changes_along_an_axis() -> None:
    seen = points(ScalingConfig(largest=8))
    assert [p.value for p in seen if p.axis == "batch"] == [1, 2, 4, 8]
    for axis, (name, batch, values) in AXES.items():
        mine = [p for p in seen if p.axis == axis]
        assert {p.case.name for p in mine} == {name}
        if axis != "batch":
            assert {p.batch for p in mine} == {batch} and len(mine) == len(values)
        assert len({p.case.size for p in mine}) == (len(values) if axis == "size" else 1)
        assert [p.targets for p in mine] == (list(values) if axis == "targets" else [1] * len(mine))
    assert [p.layers for p in seen if p.axis == "layers"] == [1, 2, 4, 8, 16, 32]
    assert len(points(ScalingConfig(("targets",), values=(2, 4)))) == 2


def test_a_short_budget_reaches_every_axis() -> None:
    seen = points(ScalingConfig())
    assert [p.axis for p in seen[: 2 * len(AXES)]] == [*AXES, *AXES]
    assert len(set(seen)) == len(seen)


@pytest.mark.slow
def test_points_are_measured_and_late_ones_are_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(AXES, "layers", ("resnet18-tiny", 2, (2,)))
    config = ScalingConfig(("layers",), backends=("eager",), rounds=1)
    rows = scaling(config, lambda line: None)
    assert [r.error for r in rows] == [None] * len(rows)
    names = [EAGER, "forward, ONNX Runtime", "combicam, eager", AUTHORS]
    assert [r.name for r in rows] == names
    assert all(r.params["peak_mib"] >= 0 and r.images_per_s > 0 for r in rows)  # type: ignore[operator]
    assert [line.count("|") for line in scaling_table(rows).splitlines()] == [6] * 3
    record = tmp_path / "r.json"
    write(record, [*rows, Result("all", Point.on("layers", 4).params, error="not begun")])
    monkeypatch.setattr(module, "_contenders", lambda *_: pytest.fail("begun"))
    again = ScalingConfig(("layers",), resume=True, output=record)
    assert [r.name for r in scaling(again, lambda line: None)] == names
    late = scaling(ScalingConfig(("layers",), budget=-1.0), lambda line: None)
    assert [r.error for r in late] == ["not begun: budget -1 s"]


def test_deepest_layers_come_first() -> None:
    case = module.CASES["resnet18-tiny"]
    model = module.network(case)
    names = [module._layers(Point("layers", n, case, 1, n), model) for n in (1, 2)]
    assert names == [["layer4"], ["layer3", "layer4"]] or names == [
        ["layer4.1"],
        ["layer3.1", "layer4.1"],
    ]


@pytest.mark.slow
def test_memory_of_a_call() -> None:
    cpu = torch.device("cpu")
    peak_mib_of(lambda: torch.ones(1 << 22).sum(), cpu)
    used = peak_mib_of(lambda: torch.ones(1 << 24).sum(), cpu)
    assert 60 <= used < 100  # 64 MiB, and it is given back:
    assert 60 <= peak_mib_of(lambda: torch.ones(1 << 24).sum(), cpu) < 100
    assert peak_mib_of(lambda: None, cpu) < 8


def _rows() -> list[dict[str, Any]]:
    params = {"axis": "batch", "case": "resnet50", "size": [224, 224], "batch": 1}
    rows = [
        Result(n, {**params, "value": v, "peak_mib": 10.0 * v}, images_per_s=s * v)
        for n, s in ((EAGER, 20.0), ("combicam, eager", 8.0))
        for v in (4, 1, 2)
    ]
    failed = Result("combicam, eager", {**params, "value": 8, "peak_mib": None}, error="E: full")
    return [row.to_dict() for row in [*rows, failed]]


def test_the_plot_and_the_table(tmp_path: Path) -> None:
    record = json.loads(json.dumps({"cases": _rows()}))
    rows = [Result(**case) for case in record["cases"]]
    ours = series(rows, "batch")["combicam, eager"]
    np.testing.assert_array_equal(ours, [[1, 8, 10], [2, 16, 20], [4, 32, 40]])
    assert "| 8 |  | E |" in scaling_table(rows)
    draw(record, tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as picture:
        colours = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    assert (colours == (0x56, 0xB4, 0xE9)).all(1).sum() > 50  # ours is drawn
