"""Run one worker process for each device of this machine."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from threading import Lock, Thread
from typing import Any

import torch

from combicam.engine.distribution.executor import Ready, WorkerLost, shards_ahead
from combicam.engine.distribution.worker import ShardWorker, WorkerTask
from combicam.engine.explain.arguments import known_device
from combicam.engine.run.config import DistributionConfig
from combicam.engine.run.work import ShardReport, ShardWork
from combicam.errors import RunError, first_line

_STOP_S = 10.0
_STARTED_AGAIN = 64  # exit code of a worker that ran the whole script instead of serving
_VISIBLE = "CUDA_VISIBLE_DEVICES"
_STOPPING = (signal.SIGINT, signal.SIGTERM)


def named_devices(devices: Sequence[str]) -> tuple[str, ...]:
    """The devices named by ``--devices``; ``all`` means every GPU.

    Raises:
        ValueError: ``all`` without a GPU.
    """
    if tuple(devices) != ("all",):
        return tuple(devices)
    count = torch.cuda.device_count()
    if count == 0:
        raise ValueError(
            "run: expected a GPU for devices 'all', got none; name devices, for example 'cpu cpu'"
        )
    return tuple(f"cuda:{i}" for i in range(count))


@dataclass(frozen=True)
class _Child:
    process: SpawnProcess
    connection: Connection


class ProcessBackend:
    """Spawns a process per device, each with its explainer and a pipe to this process.

    A process exits when its pipe closes, so none outlives this process, however it dies.

    Args:
        task: of all processes, which share its ``workers`` and the CPU's cores.
        devices: of the processes; a device may be named more than once.
    """

    def __init__(self, task: WorkerTask, devices: Sequence[str]) -> None:
        workers = max(1, task.config.workers // len(devices))
        on_cpu = sum(known_device(device).type == "cpu" for device in devices)
        self.config = replace(task.config, workers=workers, distribution=DistributionConfig())
        self._tasks = [
            replace(
                task,
                config=replace(self.config, compute=replace(self.config.compute, device=device)),
                threads=max(1, torch.get_num_threads() // max(1, on_cpu)),
            )
            for device in devices
        ]
        self._children: dict[int, _Child] = {}
        self._ready: set[int] = set()

    @property
    def slots(self) -> int:
        """One per device."""
        return len(self._tasks)

    def start(self, slot: int) -> None:
        """Spawn a process."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        task, visible = on_its_gpu(self._tasks[slot], os.environ)
        name = f"combicam-{slot}"
        process = context.Process(target=_serve, args=(theirs, task), name=name, daemon=True)
        with _signals_wait(), _variable(_VISIBLE, visible):
            process.start()
        theirs.close()  # otherwise the pipe would stay open after its death
        self._children[slot] = _Child(process, ours)
        self._ready.discard(slot)

    def hand(self, slot: int, work: ShardWork) -> None:
        """Send a shard."""
        try:
            self._children[slot].connection.send(work)
        except OSError:
            return  # it just died, which the closed pipe will report

    def events(self, timeout_s: float) -> Iterator[tuple[int, Ready | ShardReport | WorkerLost]]:
        """Messages of the processes, and those that died.

        Raises:
            RunError: the script begins its work again in every process.
            Exception: a process raised it.
        """
        by_connection = {child.connection: slot for slot, child in self._children.items()}
        for connection in wait(list(by_connection), timeout_s):
            assert isinstance(connection, Connection)
            slot = by_connection[connection]
            try:
                message = connection.recv()
            except (EOFError, OSError, pickle.UnpicklingError):
                yield slot, WorkerLost(self._buried(slot))
                continue
            if isinstance(message, BaseException):
                raise message
            if isinstance(message, Ready):
                self._ready.add(slot)
            yield slot, message

    def _buried(self, slot: int) -> str:
        """Make sure that it is dead and cannot write its shards; describe how it died."""
        child = self._children.pop(slot)
        child.connection.close()
        child.process.join(_STOP_S)
        if child.process.is_alive():
            child.process.kill()
            child.process.join()
        code = child.process.exitcode or 0
        if code == _STARTED_AGAIN:
            raise RunError(
                "run: expected a script that begins its work under `if __name__ == '__main__':`, "
                "got one that every worker process begins again, because it imports the script; "
                "write the call under such a line"
            )
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return f"process {child.process.pid}, {how}"

    def stop(self) -> None:
        """Close the pipes; kill processes that do not exit soon, or have not started yet."""
        for slot, child in self._children.items():
            child.connection.close()
            if slot not in self._ready:
                child.process.kill()
        for slot in list(self._children):
            with suppress(RunError):
                self._buried(slot)


def check_not_imported_by_worker() -> None:
    """End a process that was spawned to serve, and imports a script that begins its work at once.

    Raises:
        SystemExit: to be told from other deaths.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise SystemExit(_STARTED_AGAIN)


@contextmanager
def _signals_wait() -> Iterator[None]:
    """Block signals, so that a process started in this block has them blocked while it imports."""
    resource_tracker.ensure_running()  # otherwise it would unblock them later
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(connection: Connection, task: WorkerTask) -> None:
    """Main of a process: receive shards, send reports, until the other end closes."""
    for number in _STOPPING:
        signal.signal(number, signal.SIG_IGN)  # Ctrl-C reaches every process; the owner decides
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)
    lock = Lock()

    def send(message: Any) -> None:
        with lock:
            connection.send(message)

    worker = ShardWorker(task)
    Thread(target=_start, args=(worker, send), daemon=True).start()
    pool = ThreadPoolExecutor(shards_ahead(task.config), "combicam-shard")
    try:
        while True:
            work = connection.recv()
            pool.submit(worker.process_shard, work).add_done_callback(partial(_answer, send))
    except (EOFError, OSError):
        worker.stop()
        # Skip the interpreter's shutdown: threads may still be running torch code.
        os._exit(0)


def on_its_gpu(task: WorkerTask, environ: Mapping[str, str]) -> tuple[WorkerTask, str | None]:
    """The task on the first GPU of a process that sees no other, and what makes it see no other:
    whatever asks for the current device there gets that one.

    Args:
        task: of the process.
        environ: of this process.

    Returns:
        The task, and the process's ``CUDA_VISIBLE_DEVICES``; None to leave that as it is.
    """
    compute = task.config.compute
    device = known_device(compute.device or "cpu")
    visible = environ.get(_VISIBLE)
    names = None if visible is None else [name for name in visible.split(",") if name]
    if device.type != "cuda" or device.index is None:
        return task, None
    if names is not None and device.index >= len(names):
        return task, None  # there is no such device, which torch says later
    own = str(device.index) if names is None else names[device.index]
    first = replace(task.config, compute=replace(compute, device="cuda:0"))
    return replace(task, config=first), own


@contextmanager
def _variable(name: str, value: str | None) -> Iterator[None]:
    """Set an environment variable for processes that are started meanwhile; None leaves it."""
    before = os.environ.get(name)
    if value is not None:
        os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before


def _start(worker: ShardWorker, send: Any) -> None:
    try:
        worker.start()
    except BaseException as error:
        send(portable(error))
    else:
        send(Ready())


def _answer(send: Any, done: Future[ShardReport]) -> None:
    error = done.exception()
    try:
        send(done.result() if error is None else portable(error))
    except OSError:
        return  # the owner is gone, and this process is exiting


def portable(error: BaseException) -> BaseException:
    """The error, or a RunError with its message if it cannot be pickled."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RunError(f"run: a worker failed: {first_line(error)}")
    return error
