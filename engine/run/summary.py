"""Summarise a run, also as ``summary.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Self

from combicam.engine.geo.accuracy import Accuracy
from combicam.engine.run.stage_times import StageSeconds
from combicam.engine.storage.atomic import read_json, write_json


@dataclass(frozen=True)
class RunSummary:
    """The whole run, and the speed of the last invocation that did any work.

    Attributes:
        run: the run directory.
        images: rows in all shards.
        shards: number of shards.
        failures: status -> rows, all but ``ok``.
        new_images: rows of this invocation, to which wall_s, images_per_s and stages refer.
        wall_s: seconds from the first read to the last commit.
        images_per_s: new_images / wall_s, decoding and writing included.
        stages: stage -> busy and waiting seconds.
        bottleneck: the busiest stage; None if there was nothing to do.
        batch_limit: images that fit into memory, if fewer than requested.
        halvings: how often the batch was halved because memory was short.
        overlays: PNG files that were drawn.
        accuracy: of the predicted locations; None without ground truth.
        ignored: what the listing left out: suffix, or reason -> number of files.
    """

    run: Path
    images: int
    shards: int
    failures: Mapping[str, int]
    new_images: int
    wall_s: float
    images_per_s: float
    stages: Mapping[str, StageSeconds]
    bottleneck: str | None
    batch_limit: int | None
    halvings: int
    overlays: tuple[Path, ...] = ()
    accuracy: Accuracy | None = None
    ignored: Mapping[str, int] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write JSON atomically; paths are relative to the run."""
        values = asdict(replace(self, overlays=()))
        del values["run"]
        values["overlays"] = [str(p.relative_to(self.run)) for p in self.overlays]
        values["accuracy"] = self.accuracy and self.accuracy.to_dict()
        write_json(path, values)

    @classmethod
    def read(cls, path: Path) -> Self:
        """The inverse of :meth:`write`.

        Raises:
            RunError: a damaged file.
        """
        values = read_json(path, "run again to write it")
        values["stages"] = {k: StageSeconds(**v) for k, v in values["stages"].items()}
        values["overlays"] = tuple(path.parent / name for name in values["overlays"])
        if (accuracy := values.get("accuracy")) is not None:
            values["accuracy"] = Accuracy.from_dict(accuracy)
        return cls(run=path.parent, **values)
