"""``ShardWork``: one shard to do, whole or in part; and what of its old file stays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from combicam.engine.inputs.manifest import Manifest
from combicam.engine.run.directory import RunDirectory
from combicam.engine.shards.files import shard_path
from combicam.engine.shards.status import OK
from combicam.engine.storage.paths import read_parquet


@dataclass(frozen=True)
class ShardWork:
    """A shard that is not there yet, or rows of a committed one that are tried again.

    Attributes:
        index: of the shard.
        rows: places in the shard, in order; None for all.
    """

    index: int
    rows: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Kept:
    """Rows of a committed shard that stay as they are, and their places in it."""

    table: Any
    rows: Sequence[int]


def kept_rows(run: Path, work: ShardWork) -> Kept | None:
    """What of a shard's old file goes into the new one; None for a new shard."""
    if work.rows is None:
        return None
    table = read_parquet(shard_path(run, work.index))
    stay = np.setdiff1d(np.arange(table.num_rows), work.rows)
    return Kept(table.take(stay), stay.tolist())


def work_left(run: RunDirectory, manifest: Manifest, retry_failed: bool) -> list[ShardWork]:
    """The shards that are missing and, if asked for, the failed rows of the others.

    Args:
        run: its directory.
        manifest: of the run.
        retry_failed: whether rows whose status is not ok are tried again.
    """
    committed = run.committed()
    work = [ShardWork(index) for index in range(manifest.shards) if index not in committed]
    for record in run.records(committed) if retry_failed else ():
        if set(record["statuses"]) - {OK}:
            path = shard_path(run.path, record["shard"])
            status = read_parquet(path, ["status"]).column(0)
            failed = pc.indices_nonzero(pc.not_equal(status, OK)).to_pylist()
            work.append(ShardWork(record["shard"], tuple(failed)))
    return sorted(work, key=lambda item: item.index)
