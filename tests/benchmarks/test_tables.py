"""Tables come from records: what is committed is what the command writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness import Result
from benchmarks.pipeline_page import pipeline_table
from benchmarks.tables import FLOORS, TablesConfig, graph_table, provenance, rendered, tables

ROOT = Path(__file__).parents[2]
ENV: dict[str, Any] = {
    "gpu": None,
    "cpu": "Z80",
    "cores": 2,
    "versions": {"torch": "2.15.0", "numpy": "2", "onnxruntime-gpu": "1.31.1"},
    "commit": "abc",
    "dirty": False,
}
BLOCK = "<!-- table: graph of r.json -->\nold\n<!-- /table -->"


@pytest.mark.parametrize("page", TablesConfig().pages, ids=str)
def test_committed_figures_are_those_of_the_record(page: Path) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    found = rendered(text, ROOT / TablesConfig().results, str(page))
    assert found == text, "run: python -m benchmarks tables"


def _row(name: str, speed: float | None, **values: Any) -> Result:
    return Result(name, {"case": "tiny"}, images_per_s=speed, **values)


def test_rows_have_ratios_and_failures_say_why() -> None:
    rows = [_row(FLOORS[0], 10.0), _row("ours", 4.0), _row("x", None, error="E: no")]
    assert graph_table(rows).splitlines() == [
        "**tiny**",
        "",
        f"| | images/s | time / {FLOORS[0]} |",
        "|---|---|---|",
        f"| {FLOORS[0]} | 10.00 | 1.0 |",
        "| ours | 4.00 | 2.5 |",
        "| x | failed: E: no | |",
    ]
    assert "| ours | 4.00 |  |" in graph_table(rows[1:])


def test_a_line_says_where_it_was_measured() -> None:
    where = "torch 2.15.0, onnxruntime-gpu 1.31.1"
    assert provenance(ENV) == f"<sub>2 cores of Z80; {where}; commit abc</sub>"
    changed = provenance({**ENV, "gpu": "H200", "dirty": True}, ("numpy", "captum"))
    assert changed == f"<sub>H200; {where}, numpy 2; commit abc and changes to it</sub>"


def test_only_what_is_between_the_markers_changes(tmp_path: Path) -> None:
    record, page = tmp_path / "r.json", tmp_path / "page.md"
    record.write_text(json.dumps({"env": ENV, "cases": [_row(FLOORS[0], 10.0).to_dict()]}))
    page.write_text(f"before\n{BLOCK}\nbetween\n{BLOCK}\nafter\n")
    tables(TablesConfig((page,), tmp_path, plots=False))
    text = page.read_text()
    start, end = BLOCK.split("old")
    assert text.startswith(f"before\n{start}**tiny**") and text.endswith(f"</sub>{end}\nafter\n")
    assert f"{end}\nbetween\n{start}" in text and "old" not in text
    tables(TablesConfig((page,), tmp_path, plots=False))
    assert page.read_text() == text


@pytest.mark.parametrize(
    "page", [BLOCK[:-1], BLOCK[1:], BLOCK + BLOCK[1:], f"{BLOCK[:30]} {BLOCK}", BLOCK[:33] + BLOCK]
)
def test_markers_must_be_pairs(page: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="put the markers around"):
        rendered(page, tmp_path, "page.md")


def test_unknown_views_and_missing_records_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected the record .*r\.json that page\.md names"):
        rendered(BLOCK, tmp_path, "page.md")
    with pytest.raises(ValueError, match=r"expected a view of .*got 'grah'"):
        rendered(BLOCK.replace("graph", "grah"), tmp_path, "page.md")


def test_a_runs_tables() -> None:
    rows = [
        _row("whole run", 150.0),
        _row("on a GPU", 4000.0),
        Result("whole run / bound", {"ratio": 0.9126}),
        Result("up to 1000 images", {"rss_mib": 1224.6, "restart_s": 0.0104}, images_per_s=1864.1),
        Result("store grid", {"store": "grid", "bytes_per_image": 3982.9}),
    ]
    text = pipeline_table(rows)
    for line in (
        "| whole run | 150 | 1.9 h |",
        "| on a GPU | 4,000 | 4.2 min |",
        "| whole run / bound | 0.91 | |",
        "| 1,000 | 1,864 | 1,225 |",
        "| restart of the finished run | 0.01 s | |",
        "| `grid` | 4.0 |",
    ):
        assert line in text.splitlines()
    assert pipeline_table(rows[:3]).count("|---") == 3
