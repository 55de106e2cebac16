"""``RunDirectory``: whose it is, who writes to it, and what is already there."""

from __future__ import annotations

import fcntl
import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow.parquet as pq

from combicam.engine.atomic import write_json
from combicam.engine.shards import shard_path
from combicam.errors import RunError

LOCK = ".lock"


class RunDirectory:
    """A locked run directory; use it as a context manager.

    The kernel releases the lock when its owner dies, however it does.

    Args:
        path: created when missing.
        is_owner: take the lock; workers of the owner do not.

    Raises:
        RunError: not a run directory, or another run is writing to it.
    """

    def __init__(self, path: Path, is_owner: bool = True) -> None:
        self.path = path
        self._lock: int | None = None
        if not is_owner:
            return
        if path.exists() and not path.is_dir():
            raise RunError(
                f"run: expected {path} to be a directory, got a file; use another output"
            )
        path.mkdir(parents=True, exist_ok=True)
        # A run that was killed early leaves hidden files and its manifest.
        foreign = [p for p in path.iterdir() if p.name[0] != "." and p.name != self.manifest.name]
        if foreign and not self._fingerprint.exists():
            raise RunError(
                f"run: expected {path} to be empty or a run directory, got {foreign[0].name} "
                "in it; use another output"
            )
        self._lock = _locked(path / LOCK)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._lock is not None:
            os.close(self._lock)

    @property
    def manifest(self) -> Path:
        """Of all inputs."""
        return self.path / "manifest.parquet"

    @property
    def shards(self) -> Path:
        """The folder of shards."""
        return self.path / "shards"

    @property
    def summary(self) -> Path:
        """Written last."""
        return self.path / "summary.json"

    @property
    def _fingerprint(self) -> Path:
        return self.path / "run.json"

    def prepare(self, fingerprint: dict[str, Any], write_manifest: Callable[[Path], None]) -> None:
        """Start the run, or make sure that it is this one that is continued.

        Args:
            fingerprint: JSON-ready; everything that decides what rows hold.
            write_manifest: called for a new run only; from then on the manifest is final.

        Raises:
            RunError: started with another fingerprint; the message names what differs.
        """
        if self._fingerprint.exists():
            self._check(fingerprint)
        else:
            write_manifest(self.manifest)
            write_json(self._fingerprint, fingerprint)
        self.shards.mkdir(exist_ok=True)

    def _check(self, fingerprint: dict[str, Any]) -> None:
        earlier = _flat(json.loads(self._fingerprint.read_text(encoding="utf-8")))
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

    def is_committed(self, index: int) -> bool:
        """Whether a shard is there, and so complete."""
        return shard_path(self.path, index).exists()

    def write_record(self, index: int, record: dict[str, Any]) -> None:
        """Write ``shards/00042.json``."""
        write_json(shard_path(self.path, index).with_suffix(".json"), record)

    def forget_record(self, index: int) -> None:
        """Remove ``shards/00042.json``, if it is there: it is about to be wrong."""
        shard_path(self.path, index).with_suffix(".json").unlink(missing_ok=True)

    def record(self, index: int) -> dict[str, Any]:
        """A committed shard's counts and seconds; recounted if death came before they were."""
        path = shard_path(self.path, index)
        if not path.with_suffix(".json").exists():
            statuses = pq.read_table(path, columns=["status"]).column("status").to_pylist()
            self.write_record(index, shard_record(index, Counter(statuses), {}))
        values: dict[str, Any] = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        return values


def shard_record(index: int, statuses: Counter[str], seconds: dict[str, float]) -> dict[str, Any]:
    """What ``shards/00042.json`` holds."""
    return {
        "shard": index,
        "images": statuses.total(),
        "statuses": dict(sorted(statuses.items())),
        "seconds": {name: round(value, 6) for name, value in seconds.items()},
    }


def _locked(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise RunError(
            f"run: expected {path.parent} to be free, got one that another run is writing to; "
            "wait for it, or use another output"
        ) from error
    return descriptor


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys joined by dots."""
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
