"""Whose a directory is."""

from __future__ import annotations

from pathlib import Path

import pytest

from combicam.engine.run_directory import RunDirectory
from combicam.errors import RunError


def test_lock_is_exclusive_and_released(tmp_path: Path) -> None:
    with RunDirectory(tmp_path / "run"):
        with pytest.raises(RunError, match="another run is writing"):
            RunDirectory(tmp_path / "run")
    with RunDirectory(tmp_path / "run"):
        pass


def test_foreign_directories_and_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.doc").write_text("x")
    with pytest.raises(RunError, match=r"thesis\.doc"):
        RunDirectory(tmp_path)
    with pytest.raises(RunError, match="got a file"):
        RunDirectory(tmp_path / "thesis.doc")
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.doc"]


def test_manifest_is_final_once_the_run_started(tmp_path: Path) -> None:
    calls = []

    def listing_fails(path: Path) -> None:
        raise ValueError("empty")

    with RunDirectory(tmp_path) as run:
        with pytest.raises(ValueError, match="empty"):
            run.prepare({"a": 1}, listing_fails)
        run.prepare({"a": {"b": (1, 2)}}, calls.append)
        run.prepare({"a": {"b": [1, 2]}}, calls.append)
        with pytest.raises(RunError, match=r"a\.b: \[1, 2\] there, 3 now; c: null there, 4 now"):
            run.prepare({"a": {"b": 3}, "c": 4}, calls.append)
    assert calls == [tmp_path / "manifest.parquet"]
