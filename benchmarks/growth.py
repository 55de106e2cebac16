"""Memory, speed and the time of a restart as a run grows, by a network that costs nothing."""

from __future__ import annotations

import csv
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from benchmarks.harness import Result
from benchmarks.photo_files import write_photos
from combicam import LoadedModel, ModelConfig, Preprocess, RunConfig
from combicam.engine.run.explainer import make_run_explainer
from combicam.engine.run.layout import RunLayout
from combicam.engine.runner import run_images


def tiny() -> LoadedModel:
    """A network that costs next to nothing, so that the run around it is what is measured."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )
    return LoadedModel(module.eval(), Preprocess((32, 32), resize="squash"), "tiny")


def growth_rows(
    folder: Path, images: int, workers: int, say: Callable[[str], None]
) -> list[Result]:
    """Memory, images/s and the time of a restart as a run of the tiny network grows.

    Args:
        folder: for photos and outputs.
        images: of the longest run; rows of a list, which name the same 2,000 photos.
    """
    photos = write_photos(folder / "photos", min(images, 2000), 64)
    listing = folder / "list.csv"
    with listing.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "id"])
        writer.writerows([photos[i % len(photos)], f"{i:07d}"] for i in range(images))
    config = RunConfig(
        str(listing),
        folder / "growth",
        ModelConfig("benchmarks.growth:tiny"),
        batch_size=64,
        workers=workers,
        progress=False,
    )
    explainer = make_run_explainer(config)
    samples: list[tuple[int, float, float]] = []  # images, seconds, MiB
    done = threading.Event()
    started = time.perf_counter()

    def watch() -> None:
        while not done.wait(0.1):
            shards = len(list(RunLayout(config.output).records.glob("*.json")))
            samples.append(
                (shards * config.storage.shard_size, time.perf_counter() - started, _rss_mib())
            )

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        run_images(config, explainer)
    finally:
        done.set()
        watcher.join()
    wall = time.perf_counter() - started
    restarted = time.perf_counter()
    run_images(config, explainer)
    restart = time.perf_counter() - restarted
    params = {"images": images, "workers": workers, "wall_s": wall, "restart_s": restart}
    say(f"  {images / wall:.0f} images/s, restart {restart:.2f} s")
    rows = []
    marks = [m for m in (1000, 3000, 10_000, 30_000, 100_000, 300_000, 1_000_000) if m <= images]
    previous = (0, 0.0)
    for mark in marks:
        upto = [s for s in samples if s[0] <= mark]
        reached, seconds, memory = upto[-1]
        peak = max(s[2] for s in upto)
        rate = (reached - previous[0]) / max(seconds - previous[1], 1e-9)
        rows.append(
            Result(
                f"up to {mark} images",
                params | {"rss_mib": memory, "peak_rss_mib": peak},
                images_per_s=rate,
            )
        )
        say(f"  up to {mark}: {memory:.0f} MiB, {rate:.0f} images/s since the mark before")
        previous = (reached, seconds)
    return rows


def _rss_mib() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("expected VmRSS in /proc/self/status, got none; this needs Linux")
