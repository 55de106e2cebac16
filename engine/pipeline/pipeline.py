"""``Pipeline``: the threads of a run; ``read → decode → batch → explain → encode → commit``."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from itertools import chain
from threading import Lock, Thread
from typing import Any, TypeVar

import torch

from combicam.engine.explain.protocol import BatchExplainer
from combicam.engine.geo.location_target import Question
from combicam.engine.images.gpu_jpeg import check_gpu_decoding
from combicam.engine.inputs.entry import Entry
from combicam.engine.inputs.manifest import Manifest
from combicam.engine.pipeline.batch import Batch, batches, even_batch_size
from combicam.engine.pipeline.channel import Channel
from combicam.engine.pipeline.commit import write_shards
from combicam.engine.pipeline.explain_stage import ExplainedBatch, ExplainStage
from combicam.engine.pipeline.load import load_in_order
from combicam.engine.run.config import RunConfig
from combicam.engine.run.directory import RunDirectory
from combicam.engine.run.stage_times import StageTimes
from combicam.engine.run.work import Kept, ShardWork, kept_rows
from combicam.engine.shards.row_format import ShardFormat
from combicam.engine.shards.status import OK
from combicam.errors import RunError

T = TypeVar("T")

_TICK_S = 0.1
_STOP_S = 5.0
_DEPTH = 2


class Pipeline:
    """Runs shards through all stages at once; owns every thread.

    Memory is bounded by the window of decoded photos and two batches between stages.

    Args:
        config: how.
        explainer: what.
        run: where; its lock is held.
        manifest: of the run.
        shard_format: of the run's rows.
        question: what is explained; None for the best classes.

    Attributes:
        times: seconds per stage so far.
        images: rows done so far.
        failures: how many of the run's rows are not ok; may start above zero.
        max_failures: more of them end the run.
    """

    def __init__(
        self,
        config: RunConfig,
        explainer: BatchExplainer,
        run: RunDirectory,
        manifest: Manifest,
        shard_format: ShardFormat,
        question: Question | None = None,
    ) -> None:
        self._config = config
        self._explainer = explainer
        self._run = run
        self._manifest = manifest
        self._format = shard_format
        self._error: BaseException | None = None
        self._open_channels()
        self._lock = Lock()
        self.explain_stage = ExplainStage(
            explainer, shard_format.maps, config.compute.cuda_graphs, question, config.top_places
        )
        if config.decode.decoder == "gpu":
            check_gpu_decoding(explainer.device)
        self.times = StageTimes(config.workers)
        self.images = 0
        self.failures = 0
        self.max_failures: int | None = None
        self._begun: dict[int, ShardWork] = {}

    @property
    def batch_limit(self) -> int | None:
        """Images that fit into memory, where that is less than asked for."""
        return self.explain_stage.limit

    @property
    def halvings(self) -> int:
        """How often memory was not enough."""
        return self.explain_stage.halvings

    def _use_gpu(self) -> None:
        """In a thread that decodes: on the GPU that explains."""
        if self._config.decode.decoder == "gpu":
            torch.cuda.set_device(self._explainer.device)

    def process(self, work: Iterable[ShardWork], on_tick: Callable[[], None]) -> None:
        """Process and commit shards.

        Args:
            work: taken one by one, a little before it is begun.
            on_tick: called in this thread, some times a second.

        Raises:
            RunError: the explainer failed, or too many images; whatever else a stage raises.
        """
        self._open_channels()
        pool = ThreadPoolExecutor(self._config.workers, "combicam-load", self._use_gpu)
        stages: list[Callable[[], None]] = [
            lambda: self._feed(self._batches(work, pool), self._to_explain),
            lambda: self._feed(self.explain_stage.explained(self._to_explain), self._to_encode),
            lambda: write_shards(
                self._to_encode, self._run, self._format, self._kept, self._tally, self._count
            ),
        ]
        threads = [Thread(target=self._guarded, args=(stage,), daemon=True) for stage in stages]
        for thread in threads:
            thread.start()
        writer = threads[-1]
        try:
            while writer.is_alive():
                writer.join(_TICK_S)
                on_tick()
        except BaseException:
            self._abort()
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            # What is being written must be gone before the lock is; a batch may be left behind.
            writer.join()
            for thread in threads[:-1]:
                thread.join(_STOP_S)
        if self._error is not None:
            raise self._error

    def _open_channels(self) -> None:
        self._to_explain: Channel[Batch] = Channel(_DEPTH)
        self._to_encode: Channel[ExplainedBatch] = Channel(_DEPTH)

    def _kept(self, shard: int) -> Kept | None:
        return kept_rows(self._run.path, self._begun.pop(shard))

    def _count(self, seconds: dict[str, float], rows: int) -> None:
        self.times.add(seconds)
        self.images += rows

    def _tally(self, table: Any) -> None:
        rows = table.select(["id", "status", "error"]).to_pylist()
        failed = [f"{row['id']}, {row['error']}" for row in rows if row["status"] != OK]
        self.failures += len(failed)
        check_failures(self.failures, self.max_failures, failed)

    def _batches(self, work: Iterable[ShardWork], pool: Executor) -> Iterator[Batch]:
        config, explainer = self._config, self._explainer
        upcoming: deque[tuple[int, Sequence[int]]] = deque()

        def entries() -> Iterator[Entry]:
            for item in work:
                inputs = self._manifest.shard(item.index)
                rows = range(len(inputs)) if item.rows is None else item.rows
                self._begun[item.index] = item
                upcoming.append((item.index, rows))
                yield from (inputs[row] for row in rows)

        loaded = load_in_order(
            entries(),
            pool,
            max(2 * config.batch_size, 4 * config.workers),
            explainer.preprocess,
            config.max_pixels,
            config.decode,
        )
        pin = explainer.device.type == "cuda"
        for first in loaded:
            shard, rows = upcoming.popleft()
            # Rows that are tried again are rounded as they would have been.
            size = even_batch_size(self._manifest.shard_images(shard), config.batch_size)
            yield from batches(shard, rows, size, chain([first], loaded), pin)

    @staticmethod
    def _feed(items: Iterator[T], channel: Channel[T]) -> None:
        for item in items:
            channel.put(item)
        channel.close()

    def _guarded(self, stage: Callable[[], None]) -> None:
        try:
            stage()
        except BaseException as error:
            # The first is the cause; the others only notice that the run stops.
            with self._lock:
                self._error = self._error or error
            self._abort()

    def _abort(self) -> None:
        self._to_explain.abort()
        self._to_encode.abort()


def check_failures(failures: int, limit: int | None, latest: Sequence[str] = ()) -> None:
    """End a run with too many of them.

    Args:
        failures: how many.
        limit: how many may be; None for all.
        latest: ids and errors of some, whose shard will not be committed.

    Raises:
        RunError: more failures than the limit.
    """
    if limit is not None and failures > limit:
        last = f" (the last: {latest[-1]})" if latest else ""
        raise RunError(
            f"run: expected at most {limit} failed images (max_failures), got {failures}{last}; "
            "see the errors of the committed shards, or raise the limit and run again: what is "
            "committed is kept"
        )
