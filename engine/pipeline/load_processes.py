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
from socket import recv_fds, send_fds, socket, socketpair
from threading import Thread
from typing import NoReturn

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
_FILE = 2**22  # bytes; a camera's JPEGs have a few million
_END_S = 5.0  # until a process that has died is seen to have
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_started_ahead: list[_Parent] = []  # one, or none
# What a process answers: for each input what load returns, or raised; and the shape of the pixels,
# or of the encoded file, that lie in the shared memory.
Answer = tuple[Loaded | Exception, tuple[int, ...] | None]


@dataclass(frozen=True)
class _Task:
    entries: Sequence[Entry]
    offset: int  # of the first one's pixels in the shared memory, bytes


@dataclass
class _Worker:
    connection: Connection
    pid: int | None = None  # None until it is ready
    tasks: deque[_Task] = field(default_factory=deque)  # not answered yet, in order


def can_load_in_processes() -> bool:
    """Whether this system has memory files (Linux)."""
    return hasattr(os, "memfd_create")


def start_ahead() -> None:
    """Start the process that forks the next :class:`LoadProcesses`, which takes seconds, now."""
    if not _started_ahead:
        _started_ahead.append(_Parent())


def stop_ahead() -> None:
    """End it, if none took it."""
    while _started_ahead:
        _started_ahead.pop().kill()


class LoadProcesses:
    """Processes that read and decode chunks of inputs in turn; they end with this object.

    Pixels, or files for a GPU to decode, come through shared memory, which is not that of
    ``/dev/shm``: containers limit that. A process that dies is replaced, and what it had is tried
    again one by one: the image that kills it once more gets a ``decode_error``.

    Args:
        workers: number of processes.
        window: inputs that are read ahead of the consumer.
        preprocess: of the model.
        config: of decoding; what a GPU decodes is left to it.
    """

    def __init__(
        self, workers: int, window: int, preprocess: Preprocess, config: DecodeConfig
    ) -> None:
        self._slot = _slot(preprocess, config)
        self._setup = (preprocess, config, self._slot)
        self._chunk = max(1, window // (_AHEAD * workers))
        self._memory_file = os.memfd_create("combicam-pixels")
        size = self._slot * self._chunk * _AHEAD * workers
        os.ftruncate(self._memory_file, size)
        self._memory = mmap.mmap(self._memory_file, size)
        self._count = workers
        self._workers: list[_Worker] = []
        self._parents: list[_Parent] = []  # one, or none
        self.close = weakref.finalize(self, _close, self._workers, self._parents, self._memory_file)
        self._begin()

    def in_order(self, entries: Iterable[Entry]) -> Iterator[Loaded]:
        """Load in order; pixels and files stay what they are until the next item is asked for.

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
            if any(worker.tasks for worker in self._workers):  # of an order that nobody waits for
                _stop(self._workers, self._parents)

    def _begin(self) -> None:
        self._parents.append(_started_ahead.pop() if _started_ahead else _Parent())
        self._workers += [self._started() for _ in range(self._count)]

    def _started(self) -> _Worker:
        if self._parents[0].has_ended:
            self._parents[0] = _Parent()
        worker = _Worker(self._parents[0].fork(self._memory_file))
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
                values = np.ndarray(shape, np.uint8, self._memory, offset)
                if item.encoded is None:
                    item = replace(item, pixels=values)
                else:
                    item = replace(item, encoded=replace(item.encoded, data=values))
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
        """Start another process in the place of a dead one; how that died.

        Raises:
            RunError: it died before it could decode anything.
        """
        worker = self._workers[number]
        worker.connection.close()
        how = self._parents[0].end_of(worker.pid)
        if worker.pid is None:
            raise _no_start(how)
        self._workers[number] = self._started()
        return how


class _Parent:
    """A process that has imported everything, and forks the ones that decode: at once, and with
    most of their memory in common. It kills them when this object is closed, or this process dies.
    """

    def __init__(self) -> None:
        self._socket, theirs = socketpair()
        script = (
            f"import sys; sys.path[:] = {sys.path!r}; "
            f"from combicam.engine.pipeline.load_processes import fork_on_demand; "
            f"fork_on_demand({theirs.fileno()})"
        )
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-c", script],
                    pass_fds=(theirs.fileno(),),
                    stdin=subprocess.DEVNULL,
                    # Threads of libraries would not survive a fork, and take others' cores.
                    env={**os.environ, **dict.fromkeys(_THREADS, "1"), "CUDA_VISIBLE_DEVICES": ""},
                    start_new_session=True,  # Ctrl-C is for the run, which closes the connection
                )
            except OSError as error:  # embedded interpreters are no program
                raise _no_start(str(error)) from error

    def fork(self, memory_file: int) -> Connection:
        """Have a process forked, as soon as everything is imported; the connection to it.

        Args:
            memory_file: that it writes to.
        """
        ours, theirs = socketpair()
        with theirs, suppress(OSError):  # whoever asks for an answer finds that none is there
            send_fds(self._socket, [b"fork"], [theirs.fileno(), memory_file])
        return Connection(ours.detach())

    def end_of(self, pid: int | None) -> str:
        """How a process died that was forked, or, of None, how this one did."""
        code = None
        if pid is not None:
            with suppress(OSError):
                self._socket.sendall(str(pid).encode())
                code = int(self._socket.recv(64) or self._process.wait())
        if code is None:
            try:
                code = self._process.wait(_END_S)
            except subprocess.TimeoutExpired:  # it lives, and one that it forked does not
                return "one that died before it could begin"
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"

    @property
    def has_ended(self) -> bool:
        """Whether it died."""
        return self._process.poll() is not None

    def kill(self) -> None:
        """End it at once, before it forked any."""
        self._process.kill()
        self.close()

    def close(self) -> None:
        """End it and all that it forked."""
        self._socket.close()
        self._process.wait()


def _no_start(how: str) -> RunError:
    return RunError(
        f"run: expected a process that decodes to start, got {how}; see stderr, or use "
        "load_in='threads'"
    )


def _received(worker: _Worker) -> list[Answer]:
    if worker.pid is None:
        worker.pid = worker.connection.recv()
    answers: list[Answer] = worker.connection.recv()
    return answers


def _stop(workers: list[_Worker], parents: list[_Parent]) -> None:
    for worker in workers:
        worker.connection.close()
    for parent in parents:
        parent.close()
    workers.clear()
    parents.clear()


def _close(workers: list[_Worker], parents: list[_Parent], memory_file: int) -> None:
    _stop(workers, parents)
    os.close(memory_file)


def fork_on_demand(socket_file: int) -> None:
    """Main of :class:`_Parent`'s process."""
    tune_allocator()
    warnings.filterwarnings("ignore", module=r"PIL\.")  # of bad images
    children: set[int] = set()
    with socket(fileno=socket_file) as asked:
        while True:
            message, files, *_ = recv_fds(asked, 64, 2)
            if not message:
                break
            if files:
                pid = os.fork()
                if pid == 0:
                    asked.close()
                    serve(*files)
                children.add(pid)
                for file in files:
                    os.close(file)
            else:
                pid = int(message)
                children.discard(pid)
                status = os.waitpid(pid, 0)[1]
                asked.sendall(str(os.waitstatus_to_exitcode(status)).encode())
    for pid in children:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def serve(connection_file: int, memory_file: int) -> NoReturn:
    """Main of a process that was forked: load what comes, until the other end closes."""
    memory = mmap.mmap(memory_file, 0)
    connection = Connection(connection_file)
    preprocess, config, slot = connection.recv()
    connection.send(os.getpid())
    tasks: SimpleQueue[_Task] = SimpleQueue()

    def receive() -> None:
        # Always ready to take a task: two ends that both wait to send would wait for ever.
        try:
            while True:
                tasks.put(connection.recv())
        except (EOFError, OSError):
            os._exit(0)

    Thread(target=receive, daemon=True).start()
    while True:
        task = tasks.get()
        answers = []
        for i, entry in enumerate(task.entries):
            answers.append(_loaded(entry, preprocess, config, memory, task.offset + i * slot, slot))
        connection.send(answers)


def _slot(preprocess: Preprocess, config: DecodeConfig) -> int:
    """Bytes of shared memory for an image; what is larger is pickled.

    Of the model's size; or of a file that a GPU decodes. Memory that is not written is not taken.
    """
    height, width = preprocess.input_size
    pixels = height * width * preprocess.channels
    return max(pixels, _FILE) if config.decoder == "gpu" else pixels


def _loaded(
    entry: Entry,
    preprocess: Preprocess,
    config: DecodeConfig,
    memory: mmap.mmap,
    offset: int,
    slot: int,
) -> Answer:
    try:
        loaded = load(entry, preprocess, config, config.decoder == "gpu")
    except Exception as error:
        return error, None
    encoded, values = loaded.encoded, loaded.pixels
    if encoded is not None:
        values = np.frombuffer(encoded.data, np.uint8)
    if values is None or values.nbytes > slot:
        return loaded, None
    np.ndarray(values.shape, np.uint8, memory, offset)[:] = values
    emptied = encoded and replace(encoded, data=b"")
    return replace(loaded, pixels=None, encoded=emptied), values.shape
