"""Tables come from records: what is committed is what the command writes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.tables import (
    BASELINE,
    END,
    START,
    TablesConfig,
    between_markers,
    graph_tables,
    tables,
)

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("page", TablesConfig().pages, ids=str)
def test_committed_figures_are_those_of_the_record(page: Path) -> None:
    table = graph_tables(json.loads((ROOT / TablesConfig().record).read_text()))
    text = (ROOT / page).read_text()
    assert between_markers(text, table, str(page)) == text, "run: python -m benchmarks tables"


def _row(name: str, speed: float | None, error: str | None = None) -> dict[str, object]:
    params = {"case": "c", "model": "tiny", "size": [64, 32], "layers": "last"}
    return {"name": name, "params": params, "images_per_s": speed, "error": error}


def test_rows_have_ratios_and_failures_say_why() -> None:
    rows = [_row(BASELINE, 10.0), _row("ours", 4.0), _row("theirs", None, "E: no")]
    assert graph_tables({"cases": rows}).splitlines() == [
        "**tiny, 64 × 32, `last`**",
        "",
        "| | images/s | time / forward in ONNX Runtime |",
        "|---|---|---|",
        f"| {BASELINE} | 10.00 | 1.0 |",
        "| ours | 4.00 | 2.5 |",
        "| theirs | failed: E: no | |",
    ]
    assert "| ours | 4.00 |  |" in graph_tables({"cases": rows[1:]})


def test_only_what_is_between_the_markers_changes(tmp_path: Path) -> None:
    record, page = tmp_path / "r.json", tmp_path / "page.md"
    record.write_text(json.dumps({"cases": [_row(BASELINE, 10.0)]}))
    page.write_text(f"before\n{START}\nold\n{END}\nafter\n")
    tables(TablesConfig(record, (page,)))
    text = page.read_text()
    assert text.startswith(f"before\n{START}\n**tiny") and text.endswith(f"|\n{END}\nafter\n")
    assert "old" not in text


@pytest.mark.parametrize("page", ["", START, f"{END}{START}", f"{START}{END}{START}{END}"])
def test_markers_must_be_one_pair(page: str) -> None:
    with pytest.raises(ValueError, match="put the markers around"):
        between_markers(page, "t", "page.md")
