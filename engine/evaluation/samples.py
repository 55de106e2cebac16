"""Sample the images to evaluate, from a run's rows or from a folder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import tee

import numpy as np
from numpy.typing import NDArray

from combicam.engine.images.decode import DecodeConfig
from combicam.engine.inputs.entry import Entry
from combicam.engine.inputs.listing import list_inputs
from combicam.engine.inputs.manifest import Manifest
from combicam.engine.pipeline.load import Loaded, load_in_order
from combicam.engine.run.open_run import OpenRun
from combicam.errors import RunError
from combicam.export.preprocess import Preprocess


@dataclass(frozen=True)
class Sample:
    """An image to evaluate.

    Attributes:
        entry: of the input.
        target: the class that the run explained; None for the best class.
        heatmap: float32 [H,W] that the run stored.
    """

    entry: Entry
    target: int | None = None
    heatmap: NDArray[np.float32] | None = None


def input_samples(source: str, images: int | None, seed: int) -> list[Sample]:
    """Sample inputs, keeping their order.

    Args:
        source: as for ``list_inputs``.
        images: size of the sample; None for all.
        seed: of the sample.

    Raises:
        ValueError: a missing or empty source.
    """
    entries = list(list_inputs(source))
    if not entries:
        raise ValueError(f"evaluate: expected images or a run directory, got none in {source}")
    return [Sample(entries[i]) for i in _drawn(len(entries), images, seed)]


def count_run_samples(run: OpenRun, images: int | None) -> int:
    """The number of samples of :func:`run_samples`.

    Raises:
        RunError: no row of the run was explained.
    """
    explained = sum(status == "ok" for status in _statuses(run))
    if not explained:
        raise RunError(f"evaluate: expected explained rows in {run.path}, got none")
    return min(explained, images or explained)


def run_samples(
    run: OpenRun, images: int | None, seed: int, preprocess: Preprocess
) -> Iterator[Sample]:
    """Sample explained rows of a run with the stored heatmap of the first target, in order.

    Heatmaps are resized to the model's input.

    Args:
        run: with committed shards.
        images: size of the sample; None for all.
        seed: of the sample.
        preprocess: of the run's model.
    """
    rows = np.flatnonzero([status == "ok" for status in _statuses(run)])
    wanted = rows[_drawn(len(rows), images, seed)]
    start = 0
    with Manifest(run.layout.manifest) as manifest:
        for index in run.shards:
            size = manifest.shard_images(index)
            here = wanted[(wanted >= start) & (wanted < start + size)] - start
            start += size
            if not len(here):
                continue
            shard, entries = run.shard(index), manifest.shard(index)
            photos = shard.table.select(["width", "height"]).to_pylist()
            for row in map(int, here):
                target = int(shard.targets[row, 0])
                seen = preprocess.size_of(**photos[row])
                yield Sample(entries[row], target, shard.heatmap(row, seen)[0])


def _statuses(run: OpenRun) -> list[str]:
    statuses: list[str] = run.table(["status"]).column("status").to_pylist()
    return statuses


def _drawn(count: int, images: int | None, seed: int) -> NDArray[np.int64]:
    if images is None or images >= count:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, images, replace=False))


def loaded_samples(
    samples: Iterable[Sample],
    pool: Executor,
    window: int,
    preprocess: Preprocess,
    decode: DecodeConfig,
) -> Iterator[tuple[Sample, Loaded]]:
    """Samples with their pixels, in order, read and decoded ahead.

    Args:
        samples: to read.
        pool: of threads.
        window: how far to read ahead.
        preprocess: of the model.
        decode: how images are decoded.
    """
    ahead, behind = tee(samples)
    entries = (sample.entry for sample in ahead)
    loaded = load_in_order(entries, pool, window, preprocess, decode)
    return zip(behind, loaded, strict=True)
