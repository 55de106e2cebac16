"""Two commits on one machine: this tree's benchmark over either one's package, in turn."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TURNS = 4
# Folders of the repository; below combicam when installed.
PACKAGES = ("engine", "kernels", "export")
Row = dict[str, Any]
Say = Callable[[str], None]
# Asked in a process of its own: where the package comes from.
_WHERE = (
    "import importlib.util as u\n"
    "for name in ('combicam', 'combicam.engine', 'combicam.kernels', 'combicam.export'):\n"
    "    print(u.find_spec(name).origin)\n"
)


@dataclass(frozen=True)
class Comparison:
    """One row of the benchmark in both trees.

    Attributes:
        name: of the row, with the parameters that both have.
        before: images a second of every turn at the other commit.
        after: of every turn in this tree.
        error: of a turn that failed.
    """

    name: str
    before: list[float]
    after: list[float]
    error: str | None = None

    @property
    def speedup(self) -> float:
        """Median of this tree over the median of the other."""
        return median(self.after) / median(self.before)

    @property
    def verdict(self) -> str:
        """``faster`` or ``slower`` where every turn was, else ``within noise``.

        Four turns each of the same thing are all on one side of the other four once in 35 times.
        """
        if self.error is not None:
            return f"failed: {self.error}"
        if min(self.after) > max(self.before):
            return "faster"
        return "slower" if max(self.after) < min(self.before) else "within noise"


def compare(
    case: str, arguments: Sequence[str], revision: str, say: Say, root: Path = ROOT
) -> list[Comparison]:
    """Run a benchmark at another commit and here, ``TURNS`` times each, alternating.

    Args:
        case: of ``python -m benchmarks``.
        arguments: for it, without ``--output``.
        revision: what git understands.
        say: is told of every turn.
        root: of the repository.

    Raises:
        ValueError: no such revision, or a tree whose package is not found.
        RuntimeError: a benchmark that ended badly; the end of what it said is in the message.
    """
    with (
        tempfile.TemporaryDirectory(prefix="combicam-compare-") as name,
        _worktree(revision, Path(name) / "tree", root) as tree,
    ):
        folders = {"before": Path(name) / "before", "after": Path(name) / "after"}
        _link(tree, folders["before"], root)
        _link(root, folders["after"], root)
        found: dict[str, list[list[Row]]] = {"before": [], "after": []}
        for turn in range(TURNS):
            for side, folder in folders.items():
                found[side].append(_run(case, arguments, folder))
                say(f"turn {turn + 1} of {TURNS}: {side}")
    return _joined(found["before"], found["after"])


@contextmanager
def _worktree(revision: str, tree: Path, root: Path) -> Iterator[Path]:
    def git(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True)

    made = git("worktree", "add", "--detach", str(tree), revision)
    if made.returncode:
        raise ValueError(
            f"compare: expected a revision of {root}, got {revision!r}: {made.stderr.strip()}; "
            "name a commit, a tag or a branch"
        )
    try:
        yield tree
    finally:
        git("worktree", "remove", "--force", str(tree))


def _link(tree: Path, folder: Path, root: Path) -> None:
    """A folder for ``PYTHONPATH``: combicam as installed, of the tree; benchmarks, of the root."""
    package = folder / "combicam"
    package.mkdir(parents=True)
    for entry in (tree / "combicam").iterdir():
        (package / entry.name).symlink_to(entry)
    for name in PACKAGES:
        (package / name).symlink_to(tree / name)
    (folder / "benchmarks").symlink_to(root / "benchmarks")
    asked = subprocess.run(
        [sys.executable, "-c", _WHERE], cwd=folder, env=_env(folder), capture_output=True, text=True
    )
    origins = [Path(line).resolve() for line in asked.stdout.splitlines()]
    if len(origins) != 1 + len(PACKAGES) or not all(tree.resolve() in o.parents for o in origins):
        raise ValueError(
            f"compare: expected combicam of {tree}, got {origins} {asked.stderr[-300:]}; name a "
            "revision that has the same packages"
        )


def _env(folder: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}


def _run(case: str, arguments: Sequence[str], folder: Path) -> list[Row]:
    output = folder / "record.json"
    output.unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks", case, *arguments, "--output", str(output)]
    ended = subprocess.run(command, cwd=folder, env=_env(folder), capture_output=True, text=True)
    if ended.returncode or not output.exists():
        raise RuntimeError(
            f"compare: expected {' '.join(command)} to write its record, got exit status "
            f"{ended.returncode}: {ended.stderr[-1000:]}; run it alone in that tree"
        )
    rows: list[Row] = json.loads(output.read_text())["cases"]
    return rows


def _joined(before: list[list[Row]], after: list[list[Row]]) -> list[Comparison]:
    """Rows that both sides have a speed of, or an error; in the order of this tree's first turn."""
    sides = [[{_key(row): row for row in turn} for turn in side] for side in (before, after)]
    joined = []
    for key in sides[1][0]:
        rows = [[turn.get(key) for turn in side] for side in sides]
        every = [row for side in rows for row in side]
        error = next((row["error"] for row in every if row and row["error"]), None)
        if None in every:
            error = "not in every record"
        speeds = [[row["images_per_s"] for row in side if row] for side in rows]
        if error is None and any(speed is None for side in speeds for speed in side):
            continue  # a ratio, a size: no speed
        joined.append(Comparison(key, *(speeds if error is None else ([], [])), error))
    return joined


def _key(row: Row) -> str:
    params = row["params"]
    told = [str(params[name]) for name in ("case", "axis", "value") if name in params]
    return ", ".join([row["name"], *told])


def compare_table(rows: list[Comparison], revision: str) -> str:
    """Markdown: medians of both, their ratio, and whether it is more than noise."""
    lines = [
        f"| | images/s at {revision} (turns) | images/s here (turns) | speed-up | |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        if row.error is not None:
            lines.append(f"| {row.name} | | | | {row.verdict} |")
            continue
        cells = [f"{median(s):.4g} ({min(s):.4g}–{max(s):.4g})" for s in (row.before, row.after)]
        lines.append(f"| {row.name} | {' | '.join(cells)} | {row.speedup:.3f} | {row.verdict} |")
    return "\n".join(lines)


def to_json(rows: list[Comparison]) -> list[dict[str, object]]:
    """For the record."""
    return [
        {**asdict(row), "verdict": row.verdict, "speedup": None if row.error else row.speedup}
        for row in rows
    ]
