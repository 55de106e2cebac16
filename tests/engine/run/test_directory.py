"""Whose a directory is."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from combicam import ClassTable, RunConfig, open_run
from combicam.engine.run.directory import RunDirectory
from combicam.engine.runner import run_images
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


def test_somebody_elses_manifest_is_left_alone(tmp_path: Path) -> None:
    """A folder that a run has locked is a run's; a list of the same name may be the input."""
    (tmp_path / "manifest.parquet").write_text("a list")
    with pytest.raises(RunError, match=r"got manifest\.parquet in it"):
        RunDirectory(tmp_path)
    (tmp_path / ".lock").touch()
    with RunDirectory(tmp_path):
        pass
    assert (tmp_path / "manifest.parquet").read_text() == "a list"


def test_names_that_parquet_cannot_have_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"with a UTF-8 name, got .*run\\xff"):
        RunDirectory(tmp_path / os.fsdecode(b"run\xff"))
    assert not list(tmp_path.iterdir())


def test_a_file_system_without_locks_is_not_another_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("combicam.engine.storage.locks.fcntl.flock", flock)
    with pytest.raises(OSError, match=r"No locks available .*\.lock"):
        RunDirectory(tmp_path)


def test_a_run_keeps_what_its_classes_are_called(tmp_path: Path, photos: Any, fake: Any) -> None:
    photos(tmp_path / "in", 2)
    for output, classes in (("named", ClassTable(tuple("abcde"))), ("plain", None)):
        config = RunConfig(str(tmp_path / "in"), tmp_path / output, "fake", progress=False)
        run_images(config, fake(classes=classes))
        assert open_run(tmp_path / output).classes == classes
