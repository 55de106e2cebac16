"""Runs as other tools read them, also those that earlier versions wrote."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from fakes import configured, save_photos, shard_bytes, start_run, wait_for

from combicam.engine.run.layout import RunLayout
from combicam.engine.run.open_run import open_run
from combicam.engine.run.status import run_status
from combicam.engine.runner import run_images


@pytest.fixture
def run(tmp_path: Path, fake: Any) -> Path:
    save_photos(tmp_path / "in", 20)
    (tmp_path / "in" / "bad.jpg").touch()
    run_images(configured(tmp_path), fake())
    return tmp_path / "run"


def huggingface(folder: str, cache: Path) -> int:
    datasets = pytest.importorskip("datasets")
    found = datasets.load_dataset("parquet", data_dir=folder, cache_dir=str(cache))
    return len(found["train"])


READERS = {
    "pandas": lambda folder, _: len(pd.read_parquet(folder)),
    "pyarrow.dataset": lambda folder, _: ds.dataset(folder).count_rows(),
    "pyarrow.parquet": lambda folder, _: len(pq.read_table(folder)),
    "polars scan": lambda folder, _: len(pl.scan_parquet(f"{folder}/").collect()),
    "polars read": lambda folder, _: len(pl.read_parquet(folder)),
    "duckdb": lambda folder, _: duckdb.read_parquet(folder).count("*").fetchall()[0][0],
    "duckdb glob": lambda folder, _: len(duckdb.sql(f"from '{folder}/*.parquet'").fetchall()),
    "datasets": huggingface,
}


@pytest.mark.parametrize("reader", READERS)
def test_readers_take_the_folder_of_shards(
    reader: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert READERS[reader](str(run / "shards"), tmp_path / "cache") == 21


@pytest.mark.long
def test_the_folder_of_shards_has_nothing_else_at_any_time(tmp_path: Path) -> None:
    save_photos(tmp_path / "in", 40)
    process = start_run(tmp_path, committed=1, pause=0.05)
    seen: set[str] = set()

    def ended() -> bool:
        seen.update(path.name for path in (tmp_path / "run" / "shards").iterdir())
        return process.poll() is not None

    wait_for(ended)
    assert process.returncode == 0, process.communicate()[1].decode()
    assert seen == {f"{index:05d}.parquet" for index in range(5)}
    assert not list((tmp_path / "run").glob(".*.tmp"))


def as_written_before(run: Path) -> None:
    """Records beside the shards, and what a killed run left."""
    for record in (run / "records").iterdir():
        record.rename(run / "shards" / record.name)
    (run / "records").rmdir()
    (run / "shards" / ".00001.parquet.tmp").write_bytes(b"PAR1")


def test_runs_of_earlier_versions_open_and_go_on(tmp_path: Path, run: Path, fake: Any) -> None:
    shutil.copytree(run, tmp_path / "kept")
    as_written_before(run)
    before = run_status(tmp_path / "kept")
    assert (run_status(run).failures, run_status(run).committed_images) == (before.failures, 21)
    assert len(open_run(run)) == 21
    (run / "shards" / "00001.parquet").unlink()
    assert run_images(configured(tmp_path), fake()).new_images == 8
    assert shard_bytes(run) == shard_bytes(tmp_path / "kept")
    assert sorted(path.name for path in (run / "shards").iterdir()) == [*shard_bytes(run)]
    names = sorted(path.name for path in (run / "records").iterdir())
    assert names == ["00000.json", "00001.json", "00002.json"]
    assert len(pd.read_parquet(run / "shards")) == 21


def test_a_retried_shard_of_an_earlier_version(tmp_path: Path, run: Path, fake: Any) -> None:
    as_written_before(run)
    shutil.copy(tmp_path / "in" / "p000.jpg", tmp_path / "in" / "bad.jpg")
    assert not run_images(configured(tmp_path, retry_failed=True), fake()).failures
    assert not list((run / "shards").glob("*.json")) and not run_status(run).failures


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"[]", b'{"statuses": 3}', b"\xff\xfe{}", b'{"a": 1}']
)
def test_damaged_records_are_counted_again(
    tmp_path: Path, run: Path, fake: Any, damage: bytes
) -> None:
    record = RunLayout(run).record(0)
    whole = json.loads(record.read_bytes())
    record.write_bytes(damage)
    assert run_status(run).committed_images == 21
    assert run_images(configured(tmp_path), fake()).failures == {"decode_error": 1}
    assert json.loads(record.read_bytes()) == whole | {"seconds": {}}
