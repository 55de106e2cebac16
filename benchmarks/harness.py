"""Timing side by side: contenders take turns, so that a noisy minute hits all of them."""

from __future__ import annotations

import gc
import json
import math
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.environment import environment
from benchmarks.turns import wait_for_turn
from combicam.errors import first_line

RESULTS = Path("benchmarks/results")
# Seconds of a contender on a GPU, which is at hand for minutes.
_ENOUGH = 4.0
_SAMPLE = 0.05  # seconds
_MOST_CALLS = 1000  # in a sample, which is shorter where a call takes less than 0.05 ms
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def say(line: str) -> None:
    """Progress, which is not the result."""
    print(line, file=sys.stderr, flush=True)


def known(what: str, asked: tuple[str, ...], names: Iterable[str]) -> None:
    """Refuse cases that do not exist."""
    unknown = set(asked) - set(names)
    if unknown:
        raise ValueError(f"{what}: expected cases of {sorted(names)}, got {sorted(unknown)}")


def check_device(what: str, device: str, dtype: str = "float32") -> None:
    """Refuse what this machine or torch does not have."""
    if dtype not in DTYPES:
        raise ValueError(f"{what}: expected dtype in {list(DTYPES)}, got {dtype!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"{what}: expected a GPU for device cuda, got none; take --device cpu")


@dataclass(frozen=True)
class Contender:
    """One way to do a piece of work.

    Attributes:
        name: what the table calls it.
        prepare: builds the function that is timed; its own time is reported as ``prepare_s``.
        check: largest absolute error of one call's result; None where there is nothing to compare.
        images: images per call.
        tolerance: an error beyond it is a failure, and nothing is timed.
    """

    name: str
    prepare: Callable[[], Callable[[], Any]]
    images: int
    check: Callable[[Any], float] | None = None
    tolerance: float = 1e-3


@dataclass
class Result:
    """One row: seconds per call (quantiles), images per second, error against the reference."""

    name: str
    params: dict[str, Any]
    prepare_s: float | None = None
    p20: float | None = None
    p50: float | None = None
    p80: float | None = None
    images_per_s: float | None = None
    max_abs_err: float | None = None
    error: str | None = None
    seconds: list[float] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def write(path: Path, rows: list[Result]) -> None:
    """The record of a round."""
    write_json(path, {"cases": [row.to_dict() for row in rows]})
    say(f"written: {path}")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """A record: where it was measured, then what."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"env": environment(), **content}, indent=1) + "\n")


def measure(
    contenders: Iterable[Contender],
    params: dict[str, Any],
    rounds: int,
    say: Callable[[str], None],
    timed: Callable[[list[Result]], None] = lambda results: None,
) -> list[Result]:
    """Check, then time every contender ``rounds`` times in turn; failures are rows.

    Args:
        contenders: prepared one after the other, then kept.
        params: of every row.
        rounds: how often each is timed; on a GPU fewer where that takes long.
        say: gets a line now and then.
        timed: gets all rows after each round, so that what ends the process leaves them.
    """
    ready: list[tuple[Contender, Result, Callable[[], Any]]] = []
    results = []
    remaining = iter(contenders)
    while True:
        try:
            contender = next(remaining)
        except StopIteration:
            break
        except Exception as error:  # the rows before it are timed, none is behind it
            results.append(Result("(the next row)", params, error=first_line(error)))
            say(f"  failed: the next row: {results[-1].error}\n{traceback.format_exc(limit=2)}")
            break
        result = Result(contender.name, params)
        results.append(result)
        started = time.perf_counter()
        try:
            call = contender.prepare()
            result.prepare_s = time.perf_counter() - started
            first = call()
            if contender.check is not None:
                result.max_abs_err = contender.check(first)
                if not result.max_abs_err <= contender.tolerance:
                    raise ArithmeticError(
                        f"error {result.max_abs_err:.3g} beyond {contender.tolerance}"
                    )
            ready.append((contender, result, call))
            say(f"  ready: {contender.name} ({result.prepare_s:.1f} s)")
        except Exception as error:
            result.error = first_line(error)
            say(f"  failed: {contender.name}: {result.error}\n{traceback.format_exc(limit=2)}")
        if torch.cuda.is_available():
            gc.collect()
            torch.cuda.empty_cache()
    wait_for_turn()
    spent: Counter[str] = Counter()
    for _ in range(rounds):
        for contender, result, call in ready:
            if result.seconds and torch.cuda.is_available() and spent[contender.name] > _ENOUGH:
                continue
            gc.collect()
            started = time.perf_counter()
            result.seconds.append(seconds_per_call(call))
            spent[contender.name] += time.perf_counter() - started
            say(f"  {contender.name}: {result.seconds[-1]:.5f} s")
            p20, p50, p80 = np.quantile(result.seconds, [0.2, 0.5, 0.8])
            result.p20, result.p50, result.p80 = float(p20), float(p50), float(p80)
            result.images_per_s = contender.images / result.p50
        timed(results)
    return results


def seconds_per_call(call: Callable[[], Any]) -> float:
    """Of one call on a CPU; on a GPU the mean of as many as take 50 ms, after as many before."""
    if not torch.cuda.is_available():
        started = time.perf_counter()
        call()
        return time.perf_counter() - started
    _on_device(call, 1)  # which may compile
    calls, seconds = 1, _on_device(call, 1)
    while seconds < _SAMPLE and calls < _MOST_CALLS:  # and clocks rise
        calls = min(_MOST_CALLS, math.ceil(1.1 * calls * _SAMPLE / seconds))
        seconds = _on_device(call, calls)
    return _on_device(call, calls) / calls


def _on_device(call: Callable[[], Any], calls: int) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    for _ in range(calls):
        call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000


def table(results: list[Result], baseline: str) -> str:
    """Markdown, each row with its ratio to the baseline's time."""
    base = next((r.p50 for r in results if r.name == baseline), None)
    lines = [
        f"| | s per batch (p20–p80) | images/s | time / {baseline} | max error | ready after, s |",
        "|---|---|---|---|---|---|",
    ]
    for r in results:
        if r.p50 is None:
            lines.append(f"| {r.name} | failed: {r.error} | | | | |")
            continue
        ratio = f"{r.p50 / base:.2f}" if base else ""
        error = "" if r.max_abs_err is None else f"{r.max_abs_err:.1e}"
        lines.append(
            f"| {r.name} | {r.p50:.4g} ({r.p20:.4g}–{r.p80:.4g}) | {r.images_per_s:.4g} | {ratio} "
            f"| {error} | {r.prepare_s:.1f} |"
        )
    return "\n".join(lines)
