"""Whole ``combicam run`` commands, each in a process of its own: what a user waits for."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from benchmarks.harness import RESULTS, Result
from benchmarks.photo_files import link_photos, write_photos
from benchmarks.pipeline import LIBRARIES
from benchmarks.turns import wait_for_turn
from combicam.engine.run.layout import RunLayout
from combicam.engine.shards.status import OK

_FIRST = 5  # the first of so many parts of a run is left out of its rate


@dataclass(frozen=True)
class RunsConfig:
    """Whole commands: from the start of the process to the last shard, by decoder and cores.

    Of every command also how many images have the class that the first command found.

    Args:
        model: of the command; needs no weights.
        images: of each run.
        photos: a folder of JPEGs, repeated as often as needed; None for postcards.
        side: of a postcard, pixels.
        decoders: to compare.
        cores: that a command may use, each number in turn; none: all.
        device: ``cpu`` or ``cuda``.
        amp_dtype: of the computation; None for float32.
        shard_size: rows of a shard.
        rounds: how often each command runs, in turn.
        output: where the JSON goes, written after every command.
    """

    model: str = "demo"
    images: int = 2000
    photos: Path | None = None
    side: int = 480
    decoders: tuple[str, ...] = ("auto",)
    cores: tuple[int, ...] = ()
    device: str = "cpu"
    amp_dtype: str | None = None
    shard_size: int = 1000
    rounds: int = 1
    output: Path = RESULTS / "runs-cpu.json"

    def command(self, decoder: str, cores: int, photos: Path, output: Path) -> list[str]:
        """What is typed."""
        weights = ["--random-weights"] if self.model.startswith(LIBRARIES) else []
        dtype = [] if self.amp_dtype is None else ["--amp-dtype", self.amp_dtype]
        return [
            *(sys.executable, "-m", "combicam", "run", str(photos), "-o", str(output)),
            *("--model", self.model, *weights, "--device", self.device, *dtype),
            *("--decoder", decoder, "--workers", str(cores)),
            *("--shard-size", str(self.shard_size), "--no-progress"),
        ]


def runs(
    config: RunsConfig, say: Callable[[str], None], timed: Callable[[list[Result]], None]
) -> list[Result]:
    """A row for each command.

    Args:
        config: of the commands.
        say: gets a line now and then.
        timed: gets all rows after each command, so that what ends the process leaves them.
    """
    everything = sorted(os.sched_getaffinity(0))
    rows: list[Result] = []
    first: dict[str, int] = {}
    with tempfile.TemporaryDirectory(prefix="combicam-runs-") as name:
        photos, output = Path(name) / "in", Path(name) / "out"
        if config.photos is None:
            write_photos(photos, config.images, config.side)
        else:
            _copies(config.photos, photos, config.images)
        wait_for_turn()
        for _ in range(config.rounds):
            for cores in config.cores or (len(everything),):
                for decoder in config.decoders:
                    say(f"  {decoder}, {cores} cores")
                    command = config.command(decoder, cores, photos, output)
                    rows.append(_timed(command, everything[:cores], output))
                    rows[-1].params |= {"decoder": decoder, "cores": cores, "model": config.model}
                    rows[-1].params |= {"device": config.device, "photos": str(config.photos or "")}
                    if rows[-1].error is None:
                        classes = _classes(output)
                        first = first or classes
                        rows[-1].params["same_class"] = _agreement(classes, first)
                    shutil.rmtree(output, ignore_errors=True)
                    timed(rows)
    return rows


def _copies(source: Path, folder: Path, count: int) -> None:
    """JPEGs of a folder, and links to them."""
    found = sorted(source.glob("*.jp*g"))[:count]
    if not found:
        raise ValueError(f"runs: expected a folder of .jpg files, got {source}; name another")
    folder.mkdir()
    paths = [Path(shutil.copy(path, folder / f"{i:06d}.jpg")) for i, path in enumerate(found)]
    link_photos(paths, folder, count, len(paths))


def _classes(run: Path) -> dict[str, int]:
    """The best class of every image that was explained."""
    table = pq.read_table(RunLayout(run).shards, columns=["id", "status", "targets"])
    columns = (table.column(name).to_pylist() for name in table.column_names)
    return {name: best[0] for name, status, best in zip(*columns, strict=True) if status == OK}


def _agreement(classes: dict[str, int], others: dict[str, int]) -> float:
    """Share of the images with the same class in both; those of one alone count as different."""
    same = sum(others.get(name) == best for name, best in classes.items())
    return same / max(1, len(classes.keys() | others.keys()))


def _timed(command: list[str], cores: list[int], output: Path) -> Result:
    """One command on some cores; a row with its error if it fails."""
    started = time.perf_counter()
    ended = subprocess.run(
        command,
        capture_output=True,
        text=True,
        preexec_fn=partial(os.sched_setaffinity, 0, cores),
        check=False,
    )
    seconds = time.perf_counter() - started
    result = Result("run", {}, seconds=[seconds])
    if ended.returncode:
        result.error = ended.stderr.strip()[-2000:] or f"exit status {ended.returncode}"
        return result
    events = [json.loads(line) for line in RunLayout(output).log.read_text().splitlines()]
    result.params, result.images_per_s = figures(events)
    result.params["command_s"] = round(seconds, 2)
    return result


def figures(events: list[dict[str, Any]]) -> tuple[dict[str, Any], float]:
    """Of a run's log: what a photo took in every stage, and images/s after the first fifth."""
    (begun,) = (event for event in events if event["event"] == "started")
    shards = [event for event in events if event["event"] == "committed"]
    times = [(_time(shard) - _time(begun)).total_seconds() for shard in shards]
    first = min(max(1, len(shards) // _FIRST), len(shards) - 1)
    images = sum(shard["images"] for shard in shards)
    rest = sum(shard["images"] for shard in shards[first:])
    since = times[first - 1] if first else 0.0
    stages = {
        stage: round(sum(shard["seconds"][stage] for shard in shards) / images * 1e6, 1)
        for stage in shards[0]["seconds"]
    }
    found = {
        "images": images,
        "first_shard_s": times[0],
        "us_per_photo": stages,
        "statuses": dict(sum((Counter(shard["statuses"]) for shard in shards), Counter())),
    }
    return found, rest / (times[-1] - since)


def _time(event: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(event["time"])


def runs_table(rows: list[Result]) -> str:
    """Markdown: a line for each command."""
    lines = [
        "| decoder | cores | images/s | first shard | command | same class as in the first |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        p = row.params
        if row.error is not None:
            lines.append(
                f"| {p['decoder']} | {p['cores']} | failed: {row.error.splitlines()[-1]} | | | |"
            )
            continue
        speed = f"{row.images_per_s:,.0f} | {p['first_shard_s']:.2f} s | {p['command_s']:.1f} s"
        same = f"{p['same_class']:.1%}" if "same_class" in p else ""
        lines.append(f"| {p['decoder']} | {p['cores']} | {speed} | {same} |")
    return "\n".join(lines)
