"""The coverage table: a row per network whatever happens to it, and a run that goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

timm = pytest.importorskip("timm")

from benchmarks import coverage_case  # noqa: E402
from benchmarks.architectures import ARCHITECTURES, Architecture  # noqa: E402
from benchmarks.coverage import CoverageConfig, coverage, markdown, run_case  # noqa: E402
from benchmarks.coverage_case import Coverage, examine, parameters  # noqa: E402

TINY = Architecture(
    "timm:resnet18",
    "residual",
    (32, 48),
    {"layers": (1, 1, 1, 1), "channels": (8, 8, 12, 16), "stem_width": 8},
)


def test_a_network_passes_every_step() -> None:
    said: list[str | None] = []
    row = examine(TINY, lambda r: said.append(r.last))
    assert row.error is None
    assert (row.blocks, row.stages, row.last) == (4, 4, "layer4.0")
    assert row.max_abs_err is not None and row.max_abs_err < 1e-5
    assert row.onnx_err is not None and row.onnx_err < 1e-3
    assert row.onnx_mb is not None and row.onnx_mb < 1 and row.flat == 0
    assert said[0] is None and len(said) == 5


def test_what_fails_says_where_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    row = examine(Architecture("timm:resnet18", "", (32, 32), {"no": 1}), lambda _: None)
    assert row.error is not None and row.error.startswith("build: TypeError")
    monkeypatch.setattr(coverage_case, "TOLERANCE", 0.0)
    row = examine(TINY, lambda _: None)
    assert row.error is not None and "parity in torch: ArithmeticError: error" in row.error
    assert row.onnx_mb is None


@pytest.mark.slow
def test_a_process_that_ends_early_is_a_row() -> None:
    row = run_case("torchvision:vgg16_bn", 1, 1)
    assert "timeout: not done in 1 CPU seconds" == row["error"]
    assert row["params"] == parameters(ARCHITECTURES["torchvision:vgg16_bn"])


def test_a_run_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    names = ("torchvision:alexnet", "torchvision:vgg11", "torchvision:resnet18")

    def fake(name: str, threads: int, timeout: int) -> dict[str, object]:
        asked.append(name)
        if asked.count(name) == 1 and name == names[1]:
            raise KeyboardInterrupt
        error = "trace: no | way" if asked.count(name) == 1 and name == names[2] else None
        row = Coverage(name, parameters(ARCHITECTURES[name]), 5, 3, "x", error=error)
        return json.loads(json.dumps(row.to_dict()))  # type: ignore[no-any-return]

    monkeypatch.setattr("benchmarks.coverage.run_case", fake)
    config = CoverageConfig(names, tmp_path / "c.json", tmp_path / "c.md")
    with pytest.raises(KeyboardInterrupt):
        coverage(config)
    assert asked[:2] == list(names[:2])
    asked[:] = [names[1]]
    rows = coverage(config)
    assert names[0] not in asked and len(rows) == 3
    assert [row["name"] for row in rows] == [n for n in ARCHITECTURES if n in names]
    record = json.loads((tmp_path / "c.json").read_text())
    assert record["cases"] == rows and record["env"]["versions"]["torch"]
    text = (tmp_path / "c.md").read_text()
    assert text == markdown(record)
    assert "2 of 3 architectures" in text and "trace: no \\| way |" in text
    with pytest.raises(ValueError, match="architectures"):
        CoverageConfig(models=("timm:none",))
