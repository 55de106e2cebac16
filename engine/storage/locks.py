"""Lock a run directory for one writer, by ``flock`` on disk or a lease in an object store."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from pathlib import Path
from threading import Event, Thread
from typing import Any, Protocol

from combicam.engine.storage.paths import is_client_error, is_remote
from combicam.errors import RunError

LOCK = ".lock"
_RENEW_S = 10.0
_LEASE_S = 60.0


class Lock(Protocol):
    """A lock, held from its creation until it is released."""

    def check(self) -> None:
        """Check that the lock is still held.

        Raises:
            RunError: it is not.
        """

    def release(self) -> None:
        """Release the lock."""


def lock(folder: Path) -> Lock:
    """Take the lock of a run directory.

    Raises:
        RunError: another run has it.
    """
    return StoreLock(folder) if is_remote(folder) else FileLock(folder)


class FileLock:
    """``flock`` on a file; the kernel releases it when its owner dies in any way."""

    def __init__(self, folder: Path) -> None:
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if isinstance(error, BlockingIOError):
                raise _taken(folder) from error
            raise OSError(error.errno, f"{error.strerror} (flock)", str(folder / LOCK)) from error
        self._descriptor = descriptor

    def check(self) -> None:
        """Do nothing: the kernel never takes the lock away."""

    def release(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


class StoreLock:
    """A lease: numbered objects such as ``.lock-000007``; the highest number holds the lock.

    An object is created only if its number does not exist, so if two runs want the next number,
    the store gives it to one of them. The holder keeps rewriting its object; if it stops, it is
    dead. That is found by watching the object, not by comparing clocks, or at once if the holder
    is or was a process of this machine. A holder that was wrongly taken for dead (its machine was
    suspended) finds a higher number and stops; what it wrote by then, the other run writes
    identically.

    Args:
        folder: in an object store.
        renew_s: seconds between two writes.
        lease_s: seconds without a write after which a holder counts as dead; the holder itself
            gives up after half of that.

    Raises:
        RunError: another run holds it.
    """

    def __init__(self, folder: Path, renew_s: float = _RENEW_S, lease_s: float = _LEASE_S) -> None:
        self._folder = folder
        self._renew_s, self._lease_s = renew_s, lease_s
        last = max(self._numbers(), default=0)
        if last:
            self._check_dead(last)
        self._number = last + 1
        self._is_lost = False
        store: Any = self._object(self._number)
        try:
            store.fs.pipe_file(store.path, self._content(0), mode="create")
        except FileExistsError as error:
            raise _taken(folder) from error
        numbers = self._numbers()
        if max(numbers) != self._number:  # created after others took and released it
            raise _taken(folder)
        for number in numbers[:-1]:
            self._object(number).unlink(missing_ok=True)
        self._ended = Event()
        self._renewed = time.monotonic()
        self._thread = Thread(target=self._renew, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Check that the lock is still held.

        Raises:
            RunError: another run took it, or the store could not be reached for too long.
        """
        if self._is_lost:
            raise RunError(
                f"run: expected to remain the only writer of {self._folder}, got another run that "
                "took over; committed shards are kept"
            )
        silence = time.monotonic() - self._renewed
        if silence > self._lease_s / 2:
            raise RunError(
                f"run: expected {self._folder} to be reachable, got no response for "
                f"{silence:.0f} s; run again: committed shards are kept"
            )

    def release(self) -> None:
        """Mark the lock as free; the object stays, so that its number is not used again."""
        self._ended.set()
        self._thread.join()
        if self._is_lost:
            return
        try:
            self._object(self._number).write_bytes(json.dumps({"released": True}).encode())
        except Exception as error:
            # If it cannot be marked, later runs only wait a little.
            if not isinstance(error, OSError) and not is_client_error(error):
                raise

    def _renew(self) -> None:
        writes = 0
        while not self._ended.wait(self._renew_s) and not self._is_lost:
            writes += 1
            try:
                self._object(self._number).write_bytes(self._content(writes))
                self._is_lost = max(self._numbers(), default=0) != self._number
                self._renewed = time.monotonic()
            except Exception as error:
                if not isinstance(error, OSError) and not is_client_error(error):
                    self._is_lost = True
                    raise

    def _check_dead(self, number: int) -> None:
        """Check that the lock's holder is dead; else raise RunError."""
        first = content = self._read(number)
        owner = json.loads(content)
        who = f"{owner.get('host')}, pid {owner.get('pid')}"
        lives = _lives_here(owner)
        if owner.get("released") or lives is False:
            return
        if lives:
            raise _taken(self._folder, who)
        end = time.monotonic() + self._lease_s
        while time.monotonic() < end:
            time.sleep(self._renew_s / 2)
            content = self._read(number)
            if json.loads(content).get("released"):
                return
            if content != first:
                raise _taken(self._folder, who)

    def _read(self, number: int) -> bytes:
        try:
            return self._object(number).read_bytes()
        except FileNotFoundError as error:  # superseded by a higher number
            raise _taken(self._folder) from error

    def _numbers(self) -> list[int]:
        return sorted(int(path.name[len(LOCK) + 1 :]) for path in self._folder.glob(f"{LOCK}-*"))

    def _object(self, number: int) -> Path:
        return self._folder / f"{LOCK}-{number:06d}"

    @staticmethod
    def _content(writes: int) -> bytes:
        return json.dumps(_process() | {"writes": writes}).encode()


def _taken(folder: Path, who: str = "") -> RunError:
    return RunError(
        f"run: expected {folder} to be free, got a folder that another run is writing to"
        f"{f' ({who})' if who else ''}; wait for it, or use another output"
    )


def _process() -> dict[str, Any]:
    pid = os.getpid()
    return {"host": socket.gethostname(), "boot": _boot(), "pid": pid, "born": _born(pid)}


def _lives_here(owner: dict[str, Any]) -> bool | None:
    """Whether the owner is alive; None if it is not a process of this machine."""
    here = _process()
    if here["boot"] is None or any(owner.get(key) != here[key] for key in ("host", "boot")):
        return None
    return bool(owner["born"] == _born(owner["pid"]))


def _boot() -> str | None:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None


def _born(pid: int) -> str | None:
    """The start time of a process in kernel ticks, because pids are reused."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None
