"""Lock a run directory, start or continue the run in it, and find what is committed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from combicam.engine.inputs.entry import printable
from combicam.engine.run.layout import RunLayout
from combicam.engine.storage.atomic import write_json
from combicam.engine.storage.locks import lock
from combicam.engine.storage.paths import is_remote
from combicam.errors import RunError
from combicam.export.classes.classes import ClassTable

_PARQUET_END = b"PAR1"


class RunDirectory:
    """A locked run directory; use it as a context manager.

    Args:
        path: created when missing; in a file system or an object store.

    Attributes:
        path: the same.
        layout: where its files lie.

    Raises:
        RunError: not a run directory, or another run is writing to it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.layout = RunLayout(path)
        if printable(str(path)) != str(path):
            raise RunError(
                f"run: expected an output whose name is UTF-8, got {printable(str(path))}; use "
                "another output"
            )
        if path.exists() and not path.is_dir():
            raise RunError(
                f"run: expected {path} to be a directory, got a file; use another output"
            )
        names = [p.name for p in path.iterdir()] if path.exists() else []
        # A run that was killed early leaves hidden files, its lock among them, and these.
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
        """Whether the run is still ours; costs nothing.

        Raises:
            RunError: another run took it, which can happen in an object store.
        """
        self._lock.check()

    def prepare(
        self,
        fingerprint: dict[str, Any],
        write_manifest: Callable[[Path], None],
        classes: ClassTable | None = None,
    ) -> bool:
        """Start the run, or make sure that it is this one that is continued.

        Args:
            fingerprint: JSON-ready; everything that decides what rows hold.
            write_manifest: called for a new run only; from then on the manifest is final.
            classes: written into a new run, so that who reads it has all names.

        Returns:
            Whether it is a new one.

        Raises:
            RunError: started with another fingerprint; the message names what differs.
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
        return is_new

    def _check(self, fingerprint: dict[str, Any]) -> None:
        earlier = _flat(json.loads(self.layout.fingerprint.read_text(encoding="utf-8")))
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
    """The shards that are there, and so complete; not what a broken disk has cut off."""
    return frozenset(shard for shard, path in run.shard_files().items() if _is_whole(path))


def _is_whole(path: Path) -> bool:
    """Whether a Parquet file has its end; objects appear whole."""
    if is_remote(path):
        return True
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - len(_PARQUET_END)))
        return file.read() == _PARQUET_END


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
