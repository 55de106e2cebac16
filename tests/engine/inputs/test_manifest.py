"""The manifest: order, shards, uniqueness."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from combicam.engine.inputs.entry import Entry
from combicam.engine.inputs.manifest import Manifest, write_manifest


def test_shards_are_slices_in_order(tmp_path: Path) -> None:
    entries = [Entry(f"e{i}", f"/e{i}", *((i, 7) if i % 2 else ())) for i in range(25)]
    write_manifest(tmp_path / "m.parquet", iter(entries), 10)
    with Manifest(tmp_path / "m.parquet") as manifest:
        assert (manifest.images, manifest.shards) == (25, 3)
        assert [manifest.shard_images(i) for i in range(3)] == [10, 10, 5]
        assert manifest.shard(0) + manifest.shard(1) + manifest.shard(2) == entries
    column = pq.read_table(tmp_path / "m.parquet").column("shard").to_pylist()
    assert column == [i // 10 for i in range(25)]


def test_more_entries_than_a_chunk(tmp_path: Path) -> None:
    write_manifest(tmp_path / "m.parquet", (Entry(str(i), "/") for i in range(70_000)), 60_000)
    with Manifest(tmp_path / "m.parquet") as manifest:
        assert [manifest.shard_images(i) for i in range(manifest.shards)] == [60_000, 10_000]
        assert [manifest.shard(1)[0].id, manifest.shard(1)[-1].id] == ["60000", "69999"]


def test_duplicates_are_refused_naming_both(tmp_path: Path) -> None:
    entries = [Entry("a", "/1/a"), Entry("b", "/b"), Entry("a", "/2.tar", 512, 9)]
    with pytest.raises(ValueError, match=r"input 1: /1/a; input 3: /2\.tar at byte 512"):
        write_manifest(tmp_path / "m.parquet", entries, 10)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one image"):
        write_manifest(tmp_path / "m.parquet", [], 10)
