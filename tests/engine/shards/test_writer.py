"""Rows in any order, kept ones between them, and shards that are larger than memory should be."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from combicam.engine.shards import writer as writing
from combicam.engine.shards.map_format import MapFormat
from combicam.engine.shards.row_format import ShardFormat
from combicam.engine.shards.writer import ShardWriter
from combicam.export.spec import CamSpec

FORMAT = ShardFormat(CamSpec(), MapFormat(1, (2, 2)))


def rows(numbers: list[int]) -> Any:
    values = [{"id": str(n), "uri": "", "status": "ok", "heatmap": bytes([n] * 4)} for n in numbers]
    return pa.Table.from_pylist(values, FORMAT.schema())


@st.composite
def shuffled(draw: st.DrawFn) -> tuple[list[list[int]], list[list[int]]]:
    """Batches in any order, and kept rows in groups, which are together all rows of a shard."""
    count = draw(st.integers(1, 24))
    kept = draw(st.sets(st.integers(0, count - 1), max_size=count - 1))
    new = draw(st.permutations([n for n in range(count) if n not in kept]))
    cuts = sorted(draw(st.sets(st.integers(0, len(new)))) | {0, len(new)})
    batches = [new[a:b] for a, b in itertools.pairwise(cuts)]
    size = draw(st.integers(1, count))
    groups = [[n for n in range(a, a + size) if n in kept] for a in range(0, count, size)]
    return batches, groups


@given(parts=shuffled(), group_rows=st.integers(1, 9))
def test_every_order_gives_the_same_bytes(
    parts: tuple[list[list[int]], list[list[int]]], group_rows: int
) -> None:
    batches, groups = parts
    count = sum(map(len, batches)) + sum(map(len, groups))
    found = []
    with pytest.MonkeyPatch.context() as patch, TemporaryDirectory() as folder:
        patch.setattr(writing, "_GROUP_BYTES", 4 * group_rows)
        for name, added, kept in (("a", [[*range(count)]], []), ("b", batches, groups)):
            path = Path(folder, f"{name}.parquet")
            writer = ShardWriter(path, FORMAT, kept=((rows(g), g) for g in kept))
            for batch in added:
                writer.add(rows(batch), batch)
            writer.commit()
            assert pq.read_table(path).column("id").to_pylist() == [str(n) for n in range(count)]
            found.append(path.read_bytes())
    assert found[0] == found[1]


BIG = """
import sys, numpy as np, pyarrow as pa, resource
from combicam.engine.shards.map_format import MapFormat
from combicam.engine.shards.row_format import ShardFormat
from combicam.engine.shards.writer import ShardWriter
from combicam.engine.shards.files import read_shard_file
from combicam.engine.run.layout import RunLayout
from combicam.engine.run.work import ShardWork, kept_rows
from combicam.export.spec import CamSpec
from pathlib import Path

run, side, count = RunLayout(Path(sys.argv[1])), 1024, int(sys.argv[2])
rows = ShardFormat(CamSpec(), MapFormat(1, (side, side), (side, side)))
run.shards.mkdir(parents=True)

def table(numbers):
    values = [
        {"id": str(n), "uri": "", "status": "ok", "targets": [0], "scores": [1.0], "low": [0.0],
         "high": [1.0], "flat": [False],
         "heatmap": np.random.default_rng(n).integers(0, 256, side * side, np.uint8).tobytes()}
        for n in numbers
    ]
    return pa.Table.from_pylist(values, rows.schema())

def write(numbers, kept=()):
    writer = ShardWriter(run.shard(0), rows, run.path, kept)
    for start in range(0, len(numbers), 8):
        part = numbers[start : start + 8]
        writer.add(table(part), part)
    writer.commit()

write(range(count))
again = [0, count // 2, count - 1]
write(again, kept_rows(run, ShardWork(0, tuple(again))))
shard = read_shard_file(run.shard(0))
for n in range(0, count, 16):
    expected = np.random.default_rng(n).integers(0, 256, side * side, np.uint8)
    assert (shard._heatmap(n).ravel() == expected).all()
print(pa.default_memory_pool().max_memory() / 2**20, run.shard(0).stat().st_size / 2**20)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_shard(tmp_path: Path) -> None:
    """Written, some rows of it replaced, and read, image by image."""
    done = subprocess.run(
        [sys.executable, "-c", BIG, str(tmp_path), "320"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    peak, size = map(float, done.stdout.split())
    assert size > 300 and peak < 220
