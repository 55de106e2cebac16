"""Which networks can be explained: ``python -m benchmarks.coverage``.

Every network is examined in a process of its own, so that none can stop the table, and every row is
written as it comes: an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from benchmarks.architectures import ARCHITECTURES
from benchmarks.coverage_case import Coverage, parameters
from benchmarks.environment import environment

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class CoverageConfig:
    """Layers, joint graph and ONNX file of many architectures, checked against autograd.

    Args:
        models: which of ``benchmarks/architectures.py``; default: all.
        output: the JSON; rows that are in it are not examined again.
        markdown: the table, made from the JSON.
        jobs: how many networks at a time.
        threads: of torch, per network.
        timeout: CPU seconds for a network, so that a busy machine is no failure; of the clock's
            seconds ten times as many.
        again: examine again what failed.
    """

    models: tuple[str, ...] = ()
    output: Path = Path("benchmarks/results/coverage.json")
    markdown: Path = Path("docs/coverage.md")
    jobs: int = 1
    threads: int = 1
    timeout: int = 150
    again: bool = False

    def __post_init__(self) -> None:
        unknown = sorted(set(self.models) - set(ARCHITECTURES))
        if unknown:
            raise ValueError(
                f"coverage: expected models of benchmarks/architectures.py, got {unknown}; "
                f"for instance {', '.join(list(ARCHITECTURES)[:3])}"
            )
        if self.jobs < 1 or self.timeout < 1:
            raise ValueError("coverage: expected jobs >= 1 and timeout >= 1")


Row = dict[str, Any]


def coverage(config: CoverageConfig) -> list[Row]:
    """Examine what is missing; the JSON and the table are written after every row."""
    rows = _recorded(config.output)
    wanted = config.models or tuple(ARCHITECTURES)
    todo = [name for name in wanted if name not in rows or (config.again and rows[name]["error"])]
    with ThreadPoolExecutor(config.jobs) as pool:
        for row in pool.map(lambda name: run_case(name, config.threads, config.timeout), todo):
            rows[row["name"]] = row
            _write(config, rows)
            print(table_row(row), file=sys.stderr, flush=True)
    _write(config, rows)
    return _in_order(rows)


def run_case(name: str, threads: int, timeout: int) -> Row:
    """One network in a process of its own; a crash or a timeout is a row, too."""
    module = ["-W", "ignore", "-m", "benchmarks.coverage_case"]
    command = [sys.executable, *module, name, str(threads), str(timeout)]
    late = f"timeout: not done in {timeout} CPU seconds"
    try:
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=10 * timeout)
    except subprocess.TimeoutExpired as expired:
        return {**_last_row(name, expired.stdout), "error": late}
    row = _last_row(name, ended.stdout)
    if ended.returncode == -signal.SIGXCPU:
        row["error"] = late
    elif ended.returncode:
        lines = ended.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
        row["error"] = f"exit status {ended.returncode}: {lines[-1][:200]}"
    return row


def _last_row(name: str, stdout: bytes | None) -> Row:
    lines = (stdout or b"").decode(errors="replace").splitlines(keepends=True)
    whole = [line for line in lines if line.startswith("{") and line.endswith("}\n")]
    empty = Coverage(name, parameters(ARCHITECTURES[name])).to_dict()
    row: Row = json.loads(whole[-1]) if whole else empty
    return row


def _recorded(path: Path) -> dict[str, Row]:
    """The rows of an earlier run that were made as they would be made now."""
    if not path.is_file():
        return {}
    rows: list[Row] = json.loads(path.read_text())["cases"]
    return {
        row["name"]: row
        for row in rows
        if row["name"] in ARCHITECTURES and row["params"] == parameters(ARCHITECTURES[row["name"]])
    }


def _in_order(rows: dict[str, Row]) -> list[Row]:
    return [rows[name] for name in ARCHITECTURES if name in rows]


def _write(config: CoverageConfig, rows: dict[str, Row]) -> None:
    record = {"env": environment(), "cases": _in_order(rows)}
    config.output.parent.mkdir(parents=True, exist_ok=True)
    config.markdown.parent.mkdir(parents=True, exist_ok=True)
    _replace(config.output, json.dumps(record, indent=1) + "\n")
    _replace(config.markdown, markdown(record))


def _replace(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(text)
    draft.replace(path)


def markdown(record: dict[str, Any]) -> str:
    """The table for people, with what it means and where it was made."""
    env, rows = record["env"], record["cases"]
    passed = [row for row in rows if not row["error"]]
    versions = ", ".join(f"{n} {v}" for n, v in env["versions"].items())
    head = f"""# Coverage

This page lists the architectures that were tried, with all their blocks.

{len(passed)} of {len(rows)} architectures of torchvision and timm pass every step. Made by
`python -m benchmarks.coverage` from `benchmarks/results/coverage.json`; do not edit.

*blocks*, *stages*: how many layers the rules find; *last*: the layer of `layers="last"`.
*torch*: largest difference of a heatmap's pixel between the joint graph of all blocks and one
backward pass per layer, both in float64, on {_param(rows, "batch")} images that were not traced
(tolerance {_param(rows, "tolerance"):g}). *MB*, *seconds*: the .onnx file, and the CPU time to
trace in float32 and write it. *ONNX Runtime*: that file in float32 against float64, largest
difference of the median image and in brackets of the worst; *eager*: the same for autograd in
float32, its worst image where it was recorded. (A ReLU whose input is zero to rounding is on in
one and off in the other; tolerance of the median {_param(rows, "onnx_tolerance"):g}, or
{_param(rows, "eager_times"):g} times what eager torch is off in its worst image.)
Weights are random, normalisation statistics fit the images, which are noise with the spectrum of
photos; nothing is downloaded.

{env["cpu"]}, {env["cores"]} cores; {versions}.
"""
    titles = ["model", "family", "size", "blocks", "stages", "last", "torch", "MB", "seconds"]
    titles += ["ONNX Runtime", "eager", "fails"]
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    return head + "\n" + "\n".join([*lines, *map(table_row, rows)]) + "\n"


def _param(rows: Iterable[Row], name: str) -> Any:
    return next((row["params"][name] for row in rows), 0)


def table_row(row: Row) -> str:
    """One line of the Markdown table."""
    height, width = row["params"]["size"]
    cells = [
        row["name"],
        row["params"]["family"],
        f"{height}" if height == width else f"{height}x{width}",
        _cell(row["blocks"], "d"),
        _cell(row["stages"], "d"),
        f"`{row['last']}`" if row["last"] else "",
        _cell(row["max_abs_err"], ".0e"),
        _cell(row["onnx_mb"], ".1f"),
        _cell(row["onnx_s"], ".0f"),
        _two(row["onnx_err"], row["onnx_max_err"]),
        _two(row["eager_err"], row.get("eager_max_err")),
        (row["error"] or "").replace("|", "\\|"),
    ]
    return "| " + " | ".join(cells) + " |"


def _two(median: float | None, worst: float | None) -> str:
    brackets = "" if worst is None else f" ({worst:.0e})"
    return _cell(median, ".0e") + brackets


def _cell(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


if __name__ == "__main__":
    coverage(tyro.cli(CoverageConfig, prog="python -m benchmarks.coverage"))
