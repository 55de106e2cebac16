"""Stream shards through concurrent stages: read, decode, batch, explain, encode, commit."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from itertools import chain
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TypeVar

import torch
from torch import Tensor

from combicam.cores import usable_cores
from combicam.engine.explain.streams import compute_alone, end_team
from combicam.engine.images.gpu_jpeg import GpuDecoder
from combicam.engine.inputs.entry import Entry
from combicam.engine.inputs.manifest import Manifest
from combicam.engine.pipeline.batch import Batch, batches, even_batch_size
from combicam.engine.pipeline.channel import Channel
from combicam.engine.pipeline.commit import write_shards, writer_threads
from combicam.engine.pipeline.explain_stage import ExplainedBatch, ExplainStage
from combicam.engine.pipeline.gpu_decode import decoded_on_gpu
from combicam.engine.pipeline.load import Loaded, load_in_order
from combicam.engine.pipeline.load_processes import (
    LoadProcesses,
    can_load_in_processes,
    start_ahead,
    stop_ahead,
)
from combicam.engine.run.config import RunConfig
from combicam.engine.run.failure_limit import FailureLimit
from combicam.engine.run.layout import RunLayout
from combicam.engine.run.plan import RunPlan
from combicam.engine.run.stage_times import StageTimes
from combicam.engine.run.work import ShardReport, ShardWork

T = TypeVar("T")

_TICK_S = 0.1
_STOP_S = 5.0
_DEPTH = 2
# From so many threads on, the interpreter's lock is what decoding waits for; so many photos are
# loaded before processes have started.
_LOCKED_THREADS = 6
_FEW_PHOTOS = 10_000


class Pipeline:
    """The :class:`~combicam.engine.run.work.ShardExecutor` of this process; owns its threads.

    Memory is bounded by the window of decoded images and two batches between stages.

    Args:
        config: of the run.
        plan: what the run computes.
        run: paths of the run, whose lock is held.
        manifest: of the run.
        limit: of failures; default: none.

    Attributes:
        times: seconds per stage since the last call of :meth:`process`.
    """

    def __init__(
        self,
        config: RunConfig,
        plan: RunPlan,
        run: RunLayout,
        manifest: Manifest,
        limit: FailureLimit | None = None,
    ) -> None:
        self._config = config
        self._explainer = plan.explainer
        self._run = run
        self._manifest = manifest
        self._rows = replace(plan.rows, has_truth=manifest.has_truth)
        self._limit = limit or FailureLimit()
        self._explain = ExplainStage(
            plan.explainer,
            plan.rows.maps,
            config.compute.cuda_graphs,
            plan.target,
            config.storage.top_places,
            config.compute.streams or 1,
        )
        self._decoder: GpuDecoder | None = None
        if config.decode.decoder == "gpu":
            self._decoder = GpuDecoder(plan.explainer.preprocess, plan.explainer.device)
        self._processes: LoadProcesses | None = None
        if _in_processes(config, plan.explainer.device.type, manifest.images):
            self._processes = LoadProcesses(
                config.workers,
                max(2 * config.batch, 16 * config.workers),
                plan.explainer.preprocess,
                config.decode,
            )
        stop_ahead()
        self._writers = writer_threads(plan.explainer.device.type, usable_cores())
        self.times = self._new_times()

    def _new_times(self) -> StageTimes:
        config = self._config
        return StageTimes(config.workers, 1, self._writers, config.compute.streams or 1)

    def process(self, work: Iterable[ShardWork]) -> Generator[ShardReport, None, None]:
        """See :class:`~combicam.engine.run.work.ShardExecutor`; takes items of work as it begins
        them."""
        self.times = self._new_times()
        to_explain: Channel[Batch] = Channel(_DEPTH)
        to_encode: Channel[ExplainedBatch] = Channel(_DEPTH)
        reports: SimpleQueue[ShardReport | None] = SimpleQueue()
        errors: list[BaseException] = []  # the first is the cause; the others follow from it
        loaders = 1 if self._processes else self._config.workers
        pool = ThreadPoolExecutor(loaders, "combicam-load", compute_alone)

        def write() -> None:
            shards = write_shards(to_encode, self._run, self._rows, self._limit, self._writers)
            for report in shards:
                reports.put(report)

        def abort() -> None:
            to_explain.abort()
            to_encode.abort()

        def guarded(stage: Callable[[], None]) -> None:
            try:
                if stage is not explain:
                    compute_alone()
                stage()
            except BaseException as error:
                errors.append(error)
                abort()
            finally:
                if stage is write:
                    reports.put(None)

        def explain() -> None:
            _feed(self._explain.explained(to_explain), to_encode)

        stages = (lambda: _feed(self._batches(work, pool), to_explain), explain, write)
        threads = [Thread(target=guarded, args=(stage,), daemon=True) for stage in stages]
        end_team()  # of the thread that made the explainer
        for thread in threads:
            thread.start()
        try:
            while (report := _next(reports)) is not None:
                self.times.add(report.seconds)
                yield report
        except BaseException:
            abort()
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            # The writer must end before the lock is released; other threads may be left behind.
            threads[-1].join()
            for thread in threads[:-1]:
                thread.join(_STOP_S)
        if errors:
            raise errors[0]

    def _batches(self, work: Iterable[ShardWork], pool: Executor) -> Iterator[Batch]:
        config, explainer, decoder = self._config, self._explainer, self._decoder
        preprocess = explainer.preprocess
        upcoming: deque[tuple[ShardWork, Sequence[int], int]] = deque()

        def entries() -> Iterator[Entry]:
            for item in work:
                inputs = self._manifest.shard(item.index)
                rows = item.places(len(inputs))
                # Retried rows get the batch size, and so the rounding, of the first attempt.
                upcoming.append((item, rows, even_batch_size(len(inputs), config.photos_at_once)))
                yield from (inputs[row] for row in rows)

        loaded: Iterator[Loaded]
        if self._processes is not None:
            loaded = self._processes.in_order(entries())
        else:
            window = max(2 * config.batch, 4 * config.workers)
            for_gpu = decoder is not None
            loaded = load_in_order(entries(), pool, window, preprocess, config.decode, for_gpu)
        stack: Callable[[list[Tensor]], Tensor] = torch.stack
        if decoder is not None:
            loaded = decoded_on_gpu(loaded, decoder, preprocess, config.decode)
            stack = decoder.stack
        pin = explainer.device.type == "cuda"
        for first in loaded:
            item, rows, size = upcoming.popleft()
            yield from batches(item, rows, size, chain([first], loaded), pin, stack)


def start_loading(config: RunConfig) -> None:
    """Start what the processes that decode come from, while the explainer is made."""
    name = config.compute.device or ("cuda" if torch.cuda.is_available() else "cpu")
    kind = name.partition(":")[0]
    if config.distribution.is_local and _in_processes(config, kind, _FEW_PHOTOS):
        start_ahead()


def _in_processes(config: RunConfig, device: str, images: int) -> bool:
    """Whether to read and decode in processes.

    Raises:
        ValueError: they are asked for on a system that cannot.
    """
    if config.load_in == "processes" and not can_load_in_processes():
        raise ValueError(
            f"run: expected load_in='threads' on {sys.platform}, which has no memory files, got "
            "'processes'"
        )
    if config.load_in != "auto":
        return config.load_in == "processes"
    return (
        device == "cuda"
        and config.workers >= _LOCKED_THREADS
        and images >= _FEW_PHOTOS
        and can_load_in_processes()
    )


def _feed(items: Iterator[T], channel: Channel[T]) -> None:
    for item in items:
        channel.put(item)
    channel.close()


def _next(reports: SimpleQueue[ShardReport | None]) -> ShardReport | None:
    """The next report, an empty one after a timeout, None at the end."""
    try:
        return reports.get(timeout=_TICK_S)
    except Empty:
        return ShardReport()
