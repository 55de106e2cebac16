"""A stopped evaluation goes on from its finished rows."""

from __future__ import annotations

from pathlib import Path

from combicam.engine.evaluation.partial import PartialRows


def test_rows_are_read_back_but_not_a_line_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rows.jsonl"
    first = PartialRows(path, {"steps": 3})
    first.add([{"id": "a", "deletion": float("nan")}, {"id": "b", "deletion": 0.5}])
    first.add([{"images": ["a", "b"], "energy": 0.25}])
    path.write_text(path.read_text() + '{"id": "c", "dele')
    again = PartialRows(path, {"steps": 3})
    assert list(again.images) == ["a", "b"] and again.images["b"]["deletion"] == 0.5
    assert again.mosaics == {("a", "b"): {"images": ["a", "b"], "energy": 0.25}}
    again.add([{"id": "c"}])
    assert list(PartialRows(path, {"steps": 3}).images) == ["a", "b", "c"]


def test_rows_of_other_settings_are_not_used(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    PartialRows(path, {"steps": 3}).add([{"id": "a"}])
    other = PartialRows(path, {"steps": 4})
    assert not other.images
    other.close()
    assert not path.exists()
