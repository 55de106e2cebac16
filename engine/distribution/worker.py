"""Explain and commit shards in a worker process or actor."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import Any

import torch

from combicam.allocator import tune_allocator
from combicam.engine.explain.protocol import BatchExplainer
from combicam.engine.inputs.manifest import Manifest
from combicam.engine.pipeline.calibration import unmeasured
from combicam.engine.pipeline.pipeline import Pipeline
from combicam.engine.run.config import RunConfig
from combicam.engine.run.explainer import make_run_explainer
from combicam.engine.run.layout import RunLayout
from combicam.engine.run.plan import plan_run
from combicam.engine.run.work import ShardReport, ShardWork
from combicam.errors import RunError

_STOPPED = "run: the worker was stopped; run again to process the missing shards"


@dataclass(frozen=True)
class WorkerTask:
    """The task of a worker, picklable for other processes and machines.

    Attributes:
        config: of the run, with the worker's own device and number of threads.
        run: the run directory, locked and prepared by its owner.
        fingerprint: of the owner's explainer; the worker's must be the same.
        folder: that relative paths start from.
        threads: of torch; None for its default.
        make: makes an explainer from the configuration.
    """

    config: RunConfig
    run: Path
    fingerprint: dict[str, Any]
    folder: str = field(default_factory=os.getcwd)
    threads: int | None = None
    make: Callable[[RunConfig], BatchExplainer] = make_run_explainer


class ShardWorker:
    """Explains and commits shards in a run directory that another process owns.

    ``process_shard`` may be called from several threads: their shards share the pipeline, so that
    the next one is read while the last one is written.

    Args:
        task: what to do.
    """

    def __init__(self, task: WorkerTask) -> None:
        self._task = task
        self._inbox: SimpleQueue[tuple[ShardWork, Future[ShardReport]] | None] = SimpleQueue()
        self._begun: dict[int, tuple[ShardWork, Future[ShardReport]]] = {}
        self._stopping = Event()
        self._open = ExitStack()
        self._thread: Thread | None = None
        self._pipeline: Pipeline

    def start(self) -> None:
        """Make the explainer.

        Raises:
            RunError: the explainer differs from the owner's.
            CombicamError, ValueError, FileNotFoundError: see
                :func:`~combicam.engine.run.explainer.make_run_explainer`.
        """
        task, config = self._task, self._task.config
        tune_allocator()  # the process is ours
        if Path(task.folder).is_dir():  # it may not exist on another machine
            os.chdir(task.folder)
        if task.threads is not None:
            torch.set_num_threads(task.threads)
        warnings.filterwarnings("ignore", module=r"PIL\.")  # of bad images
        explainer = task.make(config)
        _check_same(explainer.fingerprint(), task.fingerprint)
        run = RunLayout(task.run)
        manifest = self._open.enter_context(Manifest(run.manifest))
        config = unmeasured(config, explainer)  # by the threads of this process
        self._pipeline = Pipeline(config, plan_run(config, explainer), run, manifest)
        self._thread = Thread(target=self._serve, daemon=True)
        self._thread.start()

    def process_shard(self, work: ShardWork) -> ShardReport:
        """Explain and commit a shard.

        Args:
            work: a shard that no other worker has.

        Raises:
            RunError: the explainer failed, or the worker was stopped.
            Exception: another error of a stage.
        """
        done: Future[ShardReport] = Future()
        if self._stopping.is_set():
            raise RunError(_STOPPED)
        self._inbox.put((work, done))
        return done.result()

    def stop(self) -> None:
        """Drop uncommitted shards and remove partial files."""
        self._stopping.set()
        self._inbox.put(None)
        if self._thread is not None:
            self._thread.join()
        self._open.close()

    def _serve(self) -> None:
        while not self._stopping.is_set() and (first := self._inbox.get()) is not None:
            try:
                self._answer(self._shards(first))
            except BaseException as error:
                begun, self._begun = self._begun, {}
                for _, done in begun.values():
                    done.set_exception(error)
        while not self._inbox.empty():
            if (item := self._inbox.get()) is not None:
                item[1].set_exception(RunError(_STOPPED))

    def _shards(self, first: tuple[ShardWork, Future[ShardReport]]) -> Iterator[ShardWork]:
        """The shards that are waiting now; then the pipeline ends, which flushes its last rows."""
        item: tuple[ShardWork, Future[ShardReport]] | None = first
        while item is not None:
            self._begun[item[0].index] = item
            yield item[0]
            try:
                item = self._inbox.get_nowait()
            except Empty:
                return
        self._inbox.put(None)  # for the loop of threads

    def _answer(self, work: Iterator[ShardWork]) -> None:
        done = ShardReport()
        with closing(self._pipeline.process(work)) as reports:
            for report in reports:
                if self._stopping.is_set():
                    raise RunError(_STOPPED)
                done += report
                if done.shard is not None:
                    self._begun.pop(done.shard)[1].set_result(done)
                    done = ShardReport()


def _check_same(here: dict[str, Any], there: dict[str, Any]) -> None:
    different = sorted(k for k in here.keys() | there.keys() if here.get(k) != there.get(k))
    if different:
        raise RunError(
            f"run: expected every worker to make the same explainer, got another "
            f"{', '.join(different)}; seed what is random in the model, and give all workers the "
            "same files"
        )
