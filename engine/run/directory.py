"""Lock a run directory, start or continue its run, and list its committed shards."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from combicam.engine.inputs.entry import printable
from combicam.engine.run.layout import RunLayout
from combicam.engine.storage.atomic import read_json, write_json
from combicam.engine.storage.locks import lock
from combicam.engine.storage.paths import is_remote
from combicam.errors import RunError
from combicam.export.classes.classes import ClassTable

DAMAGED = "take it from a backup, or use another output"
_PARQUET_END = b"PAR1"


class RunDirectory:
    """A locked run directory; use it as a context manager.

    Args:
        path: created when missing; in a file system or an object store.

    Attributes:
        path: of the directory.
        layout: paths of its files.

    Raises:
        RunError: not a run directory, or another run is writing to it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.layout = RunLayout(path)
        if printable(str(path)) != str(path):
            raise RunError(
                f"run: expected an output with a UTF-8 name, got {printable(str(path))}; use "
                "another output"
            )
        if path.exists() and not path.is_dir():
            raise RunError(
                f"run: expected {path} to be a directory, got a file; use another output"
            )
        names = [p.name for p in path.iterdir()] if path.exists() else []
        # A run that was killed early leaves hidden files, such as its lock, and these.
        early = {self.layout.manifest.name, self.layout.classes.name}
        ours = early if any(name.startswith(self.layout.lock.name) for name in names) else set()
        foreign = [name for name in names if name[0] != "." and name not in ours]
        if foreign and self.layout.fingerprint.name not in names:
            raise RunError(
                f"run: expected {path} to be empty or a run directory, got {foreign[0]} "
                "in it; use another output"
            )
        if not is_remote(path):
            path.mkdir(parents=True, exist_ok=True)
        self._lock = lock(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._lock.release()

    def check_lock(self) -> None:
        """Make sure that the lock is still held; costs nothing.

        Raises:
            RunError: another run took the lock, which can happen in an object store.
        """
        self._lock.check()

    def prepare(
        self,
        fingerprint: dict[str, Any],
        write_manifest: Callable[[Path], None],
        classes: ClassTable | None = None,
    ) -> bool:
        """Start a new run, or check that the existing one has the same fingerprint.

        Args:
            fingerprint: JSON-ready; everything that determines the rows.
            write_manifest: called for a new run only; the manifest never changes afterwards.
            classes: written into a new run, so that its readers have the names.

        Returns:
            Whether the run is new.

        Raises:
            RunError: the run was started with another fingerprint; the message names what differs.
        """
        is_new = not self.layout.fingerprint.exists()
        if is_new:
            write_manifest(self.layout.manifest)
            if classes is not None:
                write_json(self.layout.classes, classes.to_dict())
            write_json(self.layout.fingerprint, fingerprint)
        else:
            self._check(fingerprint)
        if not is_remote(self.path):
            self.layout.shards.mkdir(exist_ok=True)
            self.layout.records.mkdir(exist_ok=True)
            for left in self.layout.shards.glob(".*.tmp"):  # of earlier versions that were killed
                left.unlink()
        return is_new

    def _check(self, fingerprint: dict[str, Any]) -> None:
        earlier = _flat(read_json(self.layout.fingerprint, DAMAGED))
        now = _flat(json.loads(json.dumps(fingerprint)))
        differences = [
            f"{key}: {_short(earlier.get(key))} there, {_short(now.get(key))} now"
            for key in sorted(earlier.keys() | now.keys())
            if earlier.get(key) != now.get(key)
        ]
        if differences:
            raise RunError(
                f"run: expected the settings that {self.path} was started with, got other "
                f"({'; '.join(differences)}); use another output"
            )


def committed_shards(run: RunLayout) -> frozenset[int]:
    """The committed shards, without files that a broken disk truncated."""
    return frozenset(shard for shard, path in run.shard_files().items() if _is_whole(path))


def _is_whole(path: Path) -> bool:
    """Whether a Parquet file has its footer; objects are never truncated."""
    if is_remote(path):
        return True
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - len(_PARQUET_END)))
        return file.read() == _PARQUET_END


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten a dictionary; nested keys are joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
