"""Read and decode in processes: past the interpreter's lock and images that crash a decoder."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
import warnings
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from multiprocessing.connection import Connection
from queue import SimpleQueue
from socket import socketpair
from threading import Thread

import numpy as np

from combicam.allocator import tune_allocator
from combicam.engine.images.decode import DecodeConfig
from combicam.engine.inputs.entry import Entry
from combicam.engine.pipeline.load import Loaded, load
from combicam.engine.shards.row_format import Record
from combicam.engine.shards.status import DECODE_ERROR
from combicam.errors import RunError
from combicam.export.preprocess import Preprocess

_AHEAD = 3  # chunks that a process has, finished ones included
_STOP_S = 5.0
# What a process answers: for each input what load returns, or raised; and the shape of pixels that
# lie in the shared memory.
Answer = tuple[Loaded | Exception, tuple[int, ...] | None]


@dataclass(frozen=True)
class _Task:
    entries: Sequence[Entry]
    offset: int  # of the first one's pixels in the shared memory, bytes


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    connection: Connection
    is_ready: bool = False
    tasks: deque[_Task] = field(default_factory=deque)  # not answered yet, in order


def can_load_in_processes() -> bool:
    """Whether this system has memory files (Linux)."""
    return hasattr(os, "memfd_create")


class LoadProcesses:
    """Processes that read and decode chunks of inputs in turn; they end with this object.

    Pixels come through shared memory, which is not that of ``/dev/shm``: containers limit that. A
    process that dies is replaced, and what it had is tried again one by one: the image that kills
    it once more gets a ``decode_error``.

    Args:
        workers: number of processes.
        window: inputs that are read ahead of the consumer.
        preprocess: of the model.
        config: of decoding, on the CPU.
    """

    def __init__(
        self, workers: int, window: int, preprocess: Preprocess, config: DecodeConfig
    ) -> None:
        self._setup = (preprocess, config)
        self._chunk = max(1, window // (_AHEAD * workers))
        height, width = preprocess.input_size
        self._slot = height * width * preprocess.channels  # larger images are pickled
        self._memory_file = os.memfd_create("combicam-pixels")
        size = self._slot * self._chunk * _AHEAD * workers
        os.ftruncate(self._memory_file, size)
        self._memory = mmap.mmap(self._memory_file, size)
        self._count = workers
        self._workers: list[_Worker] = []
        self.close = weakref.finalize(self, _close, self._workers, self._memory_file)
        self._begin()

    def in_order(self, entries: Iterable[Entry]) -> Iterator[Loaded]:
        """Load in order; pixels stay what they are until the next item is asked for.

        Raises:
            RunError: the processes cannot start, or the store of the inputs does not answer.
        """
        if not self._workers:
            self._begin()
        remaining = iter(entries)
        turns: deque[int] = deque()
        number = 0
        try:
            while chunk := list(islice(remaining, self._chunk)):
                if len(turns) == _AHEAD * self._count:
                    yield from self._answers(turns.popleft())
                place = number % (_AHEAD * self._count)
                task = _Task(chunk, place * self._chunk * self._slot)
                turns.append(number % self._count)
                self._hand(self._workers[turns[-1]], task)
                number += 1
            while turns:
                yield from self._answers(turns.popleft())
        finally:
            if any(worker.tasks for worker in self._workers):
                _stop(self._workers)  # they have inputs of an order that nobody waits for

    def _begin(self) -> None:
        self._workers += [self._started() for _ in range(self._count)]

    def _started(self) -> _Worker:
        ours, theirs = socketpair()
        script = (
            f"import sys; sys.path[:] = {sys.path!r}; "
            f"from combicam.engine.pipeline.load_processes import serve; "
            f"serve({theirs.fileno()}, {self._memory_file})"
        )
        with theirs:
            try:
                process = subprocess.Popen(
                    [sys.executable, "-c", script],
                    pass_fds=(theirs.fileno(), self._memory_file),
                    stdin=subprocess.DEVNULL,
                    # Libraries' own threads would take the cores of the other processes.
                    env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
                    start_new_session=True,  # Ctrl-C is for the run, which closes the connection
                )
            except OSError as error:  # embedded interpreters are no program
                raise _no_start(str(error)) from error
        worker = _Worker(process, Connection(ours.detach()))
        with suppress(OSError):  # it died already, which asking for an answer will tell
            worker.connection.send(self._setup)
        return worker

    def _hand(self, worker: _Worker, task: _Task) -> None:
        worker.tasks.append(task)
        with suppress(OSError):  # it died, which asking for its answer will tell
            worker.connection.send(task)

    def _answers(self, number: int) -> Iterator[Loaded]:
        """The next answers of a process, with their pixels."""
        worker = self._workers[number]
        task = worker.tasks[0]
        try:
            answers = _received(worker)
        except (EOFError, OSError):
            answers = self._one_by_one(number)
        else:
            worker.tasks.popleft()
        for i, (item, shape) in enumerate(answers):
            if isinstance(item, Exception):
                raise item
            if shape is not None:
                offset = task.offset + i * self._slot
                pixels = np.ndarray(shape, np.uint8, self._memory, offset)
                item = replace(item, pixels=pixels)
            yield item

    def _one_by_one(self, number: int) -> list[Answer]:
        """Try again what a dead process had, in others in its place."""
        tasks = list(self._workers[number].tasks)
        self._replace(number)
        answers: list[Answer] = []
        for i, entry in enumerate(tasks[0].entries):
            worker = self._workers[number]
            self._hand(worker, _Task([entry], tasks[0].offset + i * self._slot))
            try:
                answers += _received(worker)
                worker.tasks.popleft()
            except (EOFError, OSError):
                died = f"decode: the process that decoded it died of {self._replace(number)}"
                answers.append((Loaded(Record(entry, DECODE_ERROR, died), None, 0.0), None))
        for task in tasks[1:]:
            self._hand(self._workers[number], task)
        return answers

    def _replace(self, number: int) -> str:
        """Bury a dead process, start another; how the first died.

        Raises:
            RunError: it died before it could decode anything.
        """
        worker = self._workers[number]
        worker.connection.close()
        try:
            code = worker.process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            worker.process.kill()
            code = worker.process.wait()
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        if not worker.is_ready:
            raise _no_start(how)
        self._workers[number] = self._started()
        return how


def _no_start(how: str) -> RunError:
    return RunError(
        f"run: expected a process that decodes to start, got {how}; see stderr, or use "
        "load_in='threads'"
    )


def _received(worker: _Worker) -> list[Answer]:
    if not worker.is_ready:
        worker.connection.recv()
        worker.is_ready = True
    answers: list[Answer] = worker.connection.recv()
    return answers


def _stop(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.connection.close()
        worker.process.kill()
    for worker in workers:
        worker.process.wait()
    workers.clear()


def _close(workers: list[_Worker], memory_file: int) -> None:
    _stop(workers)
    os.close(memory_file)


def serve(connection_file: int, memory_file: int) -> None:
    """Main of a process: load what comes, until the other end closes or dies."""
    tune_allocator()
    warnings.filterwarnings("ignore", module=r"PIL\.")  # of bad images
    memory = mmap.mmap(memory_file, 0)
    connection = Connection(connection_file)
    preprocess, config = connection.recv()
    connection.send(None)
    tasks: SimpleQueue[_Task] = SimpleQueue()

    def receive() -> None:
        # Always ready to take a task: two ends that both wait to send would wait forever.
        try:
            while True:
                tasks.put(connection.recv())
        except (EOFError, OSError):
            os._exit(0)

    Thread(target=receive, daemon=True).start()
    slot = preprocess.input_size[0] * preprocess.input_size[1] * preprocess.channels
    while True:
        task = tasks.get()
        answers = []
        for i, entry in enumerate(task.entries):
            answers.append(_loaded(entry, preprocess, config, memory, task.offset + i * slot, slot))
        connection.send(answers)


def _loaded(
    entry: Entry,
    preprocess: Preprocess,
    config: DecodeConfig,
    memory: mmap.mmap,
    offset: int,
    slot: int,
) -> Answer:
    try:
        loaded = load(entry, preprocess, config)
    except Exception as error:
        return error, None
    pixels = loaded.pixels
    if pixels is None or pixels.nbytes > slot:
        return loaded, None
    np.ndarray(pixels.shape, np.uint8, memory, offset)[:] = pixels
    return replace(loaded, pixels=None), pixels.shape
