"""Two commits of a tiny repository: either side runs its own package, noise is not a difference."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from benchmarks.compare import Comparison, _joined, compare, compare_table, to_json

# Stands for python -m benchmarks: the speed is the package's, with some noise in every turn.
FAKE = """
import json, sys
from combicam import SPEED
from combicam.engine import NAME
assert sys.argv[1] == "graph" and sys.argv[2:4] == ["--rounds", "1"], sys.argv
rows = [
    {"name": "ours", "params": {"case": NAME}, "images_per_s": SPEED, "error": None},
    {"name": "size", "params": {}, "images_per_s": None, "error": None},
    {"name": "theirs", "params": {}, "images_per_s": None, "error": "E: no"},
]
json.dump({"cases": rows}, open(sys.argv[-1], "w"))
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Its first commit is tagged ``old``; then the package became twice as fast, uncommitted."""
    root = tmp_path / "repository"
    for name in ("combicam", "engine", "kernels", "export", "benchmarks"):
        (root / name).mkdir(parents=True)
        (root / name / "__init__.py").write_text("NAME = 'net'\n")
    (root / "benchmarks" / "__main__.py").write_text(FAKE)
    (root / "combicam" / "__init__.py").write_text("SPEED = 2.0\n")
    identity = ("-c", "user.name=n", "-c", "user.email=e@example.org")
    for command in (("init", "-q"), ("add", "."), ("commit", "-qm", "one"), ("tag", "old")):
        subprocess.run(["git", *identity, *command], cwd=root, check=True)
    (root / "combicam" / "__init__.py").write_text("SPEED = 4.0\n")
    return root


def test_either_side_runs_its_own_package(repository: Path) -> None:
    said: list[str] = []
    rows = compare("graph", ["--rounds", "1"], "old", said.append, repository)
    assert [row.name for row in rows] == ["ours, net", "theirs"]
    assert (rows[0].before, rows[0].after) == ([2.0] * 4, [4.0] * 4)
    assert (rows[0].speedup, rows[0].verdict) == (2.0, "faster")
    assert [line.split(": ")[1] for line in said] == ["before", "after"] * 4
    listed = subprocess.run(["git", "worktree", "list"], cwd=repository, capture_output=True)
    assert len(listed.stdout.splitlines()) == 1
    text = compare_table(rows, "old")
    assert "| ours, net | 2 (2–2) | 4 (4–4) | 2.000 | faster |" in text
    assert "| theirs | | | | failed: E: no |" in text
    assert to_json(rows)[0]["speedup"] == 2.0 and to_json(rows)[1]["speedup"] is None


def test_overlapping_turns_are_noise() -> None:
    assert Comparison("a", [1.0, 2.0], [1.5, 3.0]).verdict == "within noise"
    assert Comparison("a", [2.0, 3.0], [1.0, 1.9]).verdict == "slower"


def test_a_row_that_one_side_lacks_is_said() -> None:
    row = {"name": "new", "params": {}, "images_per_s": 1.0, "error": None}
    (found,) = _joined([[]], [[row]])
    assert found.verdict == "failed: not in every record"


def test_unknown_revisions_and_failing_benchmarks_are_errors(repository: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a revision of .*got 'nothing'"):
        compare("graph", [], "nothing", print, repository)
    with pytest.raises(RuntimeError, match=r"(?s)got exit status 1: .*AssertionError"):
        compare("pipeline", [], "old", print, repository)
    (repository / "kernels" / "__init__.py").unlink()
    with pytest.raises(ValueError, match="expected combicam of"):
        compare("graph", [], "old", print, repository)
