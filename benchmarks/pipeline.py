"""The run from JPEG files to committed Parquet: each stage alone, and the whole."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from benchmarks.constant_explainer import ConstantExplainer
from benchmarks.growth import growth_rows
from benchmarks.harness import Result
from benchmarks.photo_files import write_photos
from benchmarks.turns import wait_for_turn
from combicam import ModelConfig, RunConfig
from combicam.engine.explain.protocol import BatchExplainer
from combicam.engine.images.decode import DecodeConfig
from combicam.engine.images.gpu_jpeg import GpuDecoder
from combicam.engine.inputs.manifest import Manifest
from combicam.engine.pipeline.batch import Batch, batches
from combicam.engine.pipeline.calibration import unmeasured
from combicam.engine.pipeline.channel import Channel
from combicam.engine.pipeline.commit import write_shards
from combicam.engine.pipeline.explain_stage import ExplainedBatch, ExplainStage
from combicam.engine.pipeline.gpu_decode import decoded_on_gpu
from combicam.engine.pipeline.load import Loaded, load, load_in_order
from combicam.engine.pipeline.load_processes import LoadProcesses
from combicam.engine.run.config import StorageConfig
from combicam.engine.run.directory import RunDirectory
from combicam.engine.run.explainer import make_run_explainer
from combicam.engine.run.failure_limit import FailureLimit
from combicam.engine.run.layout import RunLayout
from combicam.engine.run.work import ShardWork
from combicam.engine.runner import run_images
from combicam.engine.shards.map_format import map_format
from combicam.engine.shards.row_format import ShardFormat

LIBRARIES = ("timm:", "torchvision:")


@dataclass(frozen=True)
class Bench:
    """What all measurements share.

    Attributes:
        config: of the run.
        explainer: of the run.
        folder: for outputs.
    """

    config: RunConfig
    explainer: BatchExplainer
    folder: Path

    def fresh(self, name: str) -> RunConfig:
        """The run's configuration with an output that is not there."""
        shutil.rmtree(self.folder / name, ignore_errors=True)
        return replace(self.config, output=self.folder / name)


def stages(bench: Bench) -> dict[str, Callable[[], int]]:
    """Every stage alone, as a function that returns how many images went through it."""
    config, explainer = bench.config, bench.explainer
    run_images(bench.fresh("first"), explainer)  # warm, and gives the manifest
    with Manifest(RunLayout(bench.folder / "first").manifest) as manifest:
        entries = [entry for shard in range(manifest.shards) for entry in manifest.shard(shard)]
    maps = map_format(explainer, config.storage.store, config.storage.heatmap_size)
    shard_format = ShardFormat(explainer.spec, maps, explainer.classes)

    def pooled(work: Callable[[int], object]) -> int:
        with ThreadPoolExecutor(config.workers) as pool:
            for _ in pool.map(work, range(len(entries))):
                pass
        return len(entries)

    preprocess, decode = explainer.preprocess, config.decode
    decoder = GpuDecoder(preprocess, explainer.device) if decode.decoder == "gpu" else None

    def one(i: int) -> Loaded:
        return load(entries[i], preprocess, decode)

    processes = None
    if config.load_in == "processes":
        processes = LoadProcesses(
            config.workers,
            max(2 * config.batch, 16 * config.workers),
            preprocess,
            decode,
        )
        next(processes.in_order(entries[:1]))  # they have started

    def decoded() -> int:
        if processes is None and decoder is None:
            return pooled(one)
        with ThreadPoolExecutor(config.workers) as pool:
            items = (
                load_in_order(entries, pool, 4 * config.workers, preprocess, decode, for_gpu=True)
                if processes is None
                else processes.in_order(entries)
            )
            if decoder is not None:
                items = decoded_on_gpu(items, decoder, preprocess, decode)
            return sum(1 for _ in items)

    ready = [one(i) for i in range(min(len(entries), 4 * config.batch))]

    def loaded() -> Iterator[Loaded]:
        for i in range(len(entries)):
            yield ready[i % len(ready)]

    def batched() -> Iterator[Batch]:
        return batches(
            ShardWork(0),
            range(len(entries)),
            config.batch,
            loaded(),
            explainer.device.type == "cuda",
        )

    def explained() -> Iterator[ExplainedBatch]:
        inbox: Channel[Batch] = Channel(len(entries))
        for batch in batched():
            inbox.put(batch)
        inbox.close()
        compute = config.compute
        stage = ExplainStage(explainer, maps, compute.cuda_graphs, streams=compute.streams or 1)
        return stage.explained(inbox)

    results = next(explained()).results

    def commit() -> int:
        target = bench.fresh("commit")
        with RunDirectory(target.output) as run:
            run.prepare({}, lambda path: None)
            items = (
                ExplainedBatch(batch, results.map(lambda t, n=batch.count: t[:n]))
                for batch in batched()
            )
            for _ in write_shards(items, run.layout, shard_format, FailureLimit()):
                pass
        return len(entries)

    return {
        "read": lambda: pooled(lambda i: entries[i].read()),
        "read and decode": decoded,
        "batch": lambda: sum(batch.count for batch in batched()),
        "explain": lambda: sum(item.batch.count for item in explained()),
        "encode and commit": commit,
        "whole run": lambda: run_images(bench.fresh("whole"), explainer).images,
    }


def stage_rows(bench: Bench, rounds: int, say: Callable[[str], None]) -> list[Result]:
    """Images/s of every stage alone and of the whole, in turn.

    Of the rows ``read and decode`` holds ``read``; batching costs next to nothing. ``bound`` is
    what the stages could reach together: on a CPU they share the cores and their times add up, on
    a GPU, or without a network, the slowest decides.
    """
    timed = stages(bench)
    constant = isinstance(bench.explainer, ConstantExplainer)
    wait_for_turn()
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    images = 0
    for _ in range(rounds):
        for name, work in timed.items():
            started = time.perf_counter()
            images = work()
            seconds[name].append(time.perf_counter() - started)
            say(f"  {name}: {images / seconds[name][-1]:.1f} images/s")
    params = {
        "model": bench.config.model.model,
        "explainer": "none" if constant else "model",
        "device": str(bench.explainer.device),
        "images": images,
        "backend": bench.config.compute.backend,
        "batch": bench.config.batch,
        "streams": bench.config.compute.streams or 1,
        "workers": bench.config.workers,
        "load_in": bench.config.load_in,
        "decoder": bench.config.decode.decoder,
        "store": bench.config.storage.store,
    }
    rows = [_row(name, params, values, images) for name, values in seconds.items()]
    rates = {row.name: row.images_per_s or 0.0 for row in rows}
    parts = [rates[name] for name in ("read and decode", "batch", "explain", "encode and commit")]
    shared = bench.explainer.device.type == "cpu" and not constant
    bound = 1 / sum(1 / rate for rate in parts) if shared else min(parts)
    rows.append(Result("bound", params, images_per_s=bound))
    rows.append(Result("whole run / bound", params | {"ratio": rates["whole run"] / bound}))
    busy = rates["whole run"] / rates["explain"]
    rows.append(Result("share of the time spent explaining", params | {"ratio": busy}))
    return rows


def _row(name: str, params: dict[str, object], seconds: list[float], images: int) -> Result:
    p20, p50, p80 = (float(q) for q in np.quantile(seconds, [0.2, 0.5, 0.8]))
    return Result(name, dict(params), None, p20, p50, p80, images / p50, seconds=seconds)


def bytes_per_image(bench: Bench) -> list[Result]:
    """What a row takes on disk for every way to store maps."""
    rows = []
    for store in ("full", "grid", "layers"):
        config = replace(bench.fresh(f"store-{store}"), storage=StorageConfig(store))
        summary = run_images(config, make_run_explainer(config))
        files = sum(p.stat().st_size for p in RunLayout(config.output).shards.glob("*.parquet"))
        params = {"store": store, "bytes_per_image": files / summary.images}
        rows.append(Result(f"store {store}", {"model": config.model.model, **params}))
    return rows


@dataclass(frozen=True)
class PipelineConfig:
    """From JPEG files to committed Parquet: each stage alone, together, and as the run grows.

    Args:
        model: of the stages; needs no weights.
        explainer: ``model``; or ``none``: all images get the same explanation, of the model's
            shapes, which shows what bounds a run other than its network. Only the stages are timed.
        photos: how many, JPEG postcards.
        side: of a photo, pixels.
        batch: images explained at once; None for what a short run takes.
        streams: batches explained at the same time, on a CPU; None for what a short run takes.
        workers: threads or processes that read and decode.
        load_in: where they do.
        decoder: ``auto``, ``pillow`` or ``gpu``.
        device: ``cpu`` or ``cuda``.
        amp_dtype: of the computation; None for float32.
        backend: of the computation.
        growth: images of the growing run of a tiny network; 0 leaves it out.
        rounds: how often every stage is timed, in turn; medians are reported.
        threads: of torch on the CPU.
        output: where the JSON goes.
    """

    model: str = "demo"
    explainer: Literal["model", "none"] = "model"
    photos: int = 600
    side: int = 480
    batch: int | None = None
    streams: int | None = None
    workers: int = 2
    load_in: Literal["threads", "processes"] = "threads"
    decoder: Literal["auto", "pillow", "gpu"] = "auto"
    device: str = "cpu"
    amp_dtype: str | None = None
    backend: str = "auto"
    growth: int = 100_000
    rounds: int = 3
    threads: int = 2
    output: Path = Path("benchmarks/results/pipeline-cpu.json")


def pipeline(
    config: PipelineConfig,
    say: Callable[[str], None],
    timed: Callable[[list[Result]], None] = lambda rows: None,
) -> list[Result]:
    """All rows; files are written below a temporary folder and removed."""
    torch.set_num_threads(config.threads)
    with tempfile.TemporaryDirectory(prefix="combicam-pipeline-") as name:
        folder = Path(name)
        say(f"{config}")
        write_photos(folder / "in", config.photos, config.side)
        chosen = ModelConfig(config.model, random_weights=config.model.startswith(LIBRARIES))
        run = RunConfig(
            str(folder / "in"),
            folder / "run",
            chosen,
            batch_size=config.batch or "auto",
            workers=config.workers,
            load_in=config.load_in,
            decode=DecodeConfig(config.decoder),
            shard_size=max(1, config.photos // 2),
            progress=False,
        )
        compute = replace(
            run.compute,
            device=config.device,
            amp_dtype=config.amp_dtype,
            backend=config.backend,
            streams=config.streams,
        )
        run = replace(run, compute=compute)
        explainer: BatchExplainer = make_run_explainer(run)
        run = unmeasured(run, explainer)
        if config.explainer == "none":
            bench = Bench(run, ConstantExplainer(explainer), folder / "out")
            return stage_rows(bench, config.rounds, say)
        bench = Bench(run, explainer, folder / "out")
        rows = stage_rows(bench, config.rounds, say)
        timed(rows)  # what ends the process now leaves them
        rows += bytes_per_image(bench)
        if config.growth:
            rows += growth_rows(folder / "growth", config.growth, config.workers, say)
    return rows
