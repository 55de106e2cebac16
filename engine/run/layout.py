"""Name every file of a run directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from combicam.engine.storage.locks import LOCK


@dataclass(frozen=True)
class RunLayout:
    """Paths of the files of a run.

    Attributes:
        path: the run directory, on this machine or in an object store.
    """

    path: Path

    @property
    def lock(self) -> Path:
        """Held by the run that writes; in an object store, the prefix of the lock's name."""
        return self.path / LOCK

    @property
    def fingerprint(self) -> Path:
        """Everything that determines the rows."""
        return self.path / "run.json"

    @property
    def tuning(self) -> Path:
        """The backend and batch size that were chosen by measuring."""
        return self.path / "tuning.json"

    @property
    def manifest(self) -> Path:
        """All inputs, in order, with their shards."""
        return self.path / "manifest.parquet"

    @property
    def classes(self) -> Path:
        """Names and locations of all classes, where they are known."""
        return self.path / "classes.json"

    @property
    def shards(self) -> Path:
        """The folder of committed shards, and nothing else: readers take it as a data set."""
        return self.path / "shards"

    @property
    def records(self) -> Path:
        """The folder of the shards' records."""
        return self.path / "records"

    @property
    def progress(self) -> Path:
        """The heartbeat of the current invocation."""
        return self.path / "progress.json"

    @property
    def log(self) -> Path:
        """Events, one JSON object a line."""
        return self.path / "log.jsonl"

    @property
    def summary(self) -> Path:
        """What the run did; written last."""
        return self.path / "summary.json"

    @property
    def overlays(self) -> Path:
        """The folder of overlays."""
        return self.path / "overlays"

    def shard(self, index: int) -> Path:
        """``shards/00042.parquet``."""
        return self.shards / f"{index:05d}.parquet"

    def record(self, index: int) -> Path:
        """``records/00042.json``: counts and seconds of a committed shard."""
        return self.records / f"{index:05d}.json"

    def early_record(self, index: int) -> Path:
        """Where version 0.2 and earlier wrote it, ``shards/00042.json``."""
        return self.shards / f"{index:05d}.json"

    def shard_files(self) -> dict[int, Path]:
        """Index -> file of every committed shard, in order."""
        # Sorted by number: as a name, 100000 comes before 10001.
        files = self.shards.glob("[0-9]*.parquet")
        return dict(sorted((int(file.stem), file) for file in files))
