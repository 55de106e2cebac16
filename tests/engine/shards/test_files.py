"""Shard files: rows, arrays, determinism, atomicity."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from combicam.engine.explain.explanation import Explanation
from combicam.engine.inputs.entry import Entry
from combicam.engine.run.open_run import read_shard
from combicam.engine.shards.map_format import MapFormat
from combicam.engine.shards.quantise import QuantisedExplanation, quantise
from combicam.engine.shards.row_format import Record, ShardFormat
from combicam.engine.shards.status import DECODE_ERROR
from combicam.engine.shards.writer import ShardWriter
from combicam.errors import RunError
from combicam.export.classes.classes import ClassTable
from combicam.export.spec import CamSpec

SHAPE = (2, 3, 4)
MAPS = MapFormat(2, (3, 4))


def results(count: int, seed: int = 0, placed: bool = False) -> QuantisedExplanation:
    generator = torch.Generator().manual_seed(seed)
    made = QuantisedExplanation(
        heatmaps=torch.randint(0, 256, (count, *SHAPE), generator=generator).to(torch.uint8),
        targets=torch.randint(0, 3, (count, 2), generator=generator),
        scores=torch.rand(count, 2, generator=generator),
        ranges=torch.rand(count, 2, 2, generator=generator),
        flat=torch.rand(count, 2, generator=generator) < 0.5,
        finite=torch.ones(count, dtype=torch.bool),
    )
    if not placed:
        return made
    return replace(
        made,
        places=torch.rand(count, 3, generator=generator).argsort(1)[:, :2],
        probabilities=torch.rand(count, 2, generator=generator),
        densities=torch.rand(count, 5, generator=generator),
    )


def records(count: int, bad: tuple[int, ...] = ()) -> list[Record]:
    return [
        Record(Entry(f"e{i}", f"/e{i}"), DECODE_ERROR, "broken")
        if i in bad
        else Record(Entry(f"e{i}", f"/e{i}"), width=5, height=6)
        for i in range(count)
    ]


def write(path: Path, table: pa.Table, pieces: list[int], shard_format: ShardFormat) -> None:
    writer = ShardWriter(path, shard_format)
    start = 0
    for size in pieces:
        writer.add(table.slice(start, size))
        start += size
    writer.commit()


def test_round_trip_with_failures(tmp_path: Path) -> None:
    spec = CamSpec(targets=2, score="logit")
    shard_format = ShardFormat(spec, MAPS, ClassTable(("x", "y", "z"), (1, 2, 3), (4, 5, 6)))
    made = results(3, placed=True)
    write(tmp_path / "s.parquet", shard_format.table(records(5, (0, 3)), made), [5], shard_format)
    data = read_shard(tmp_path / "s.parquet")
    good = [1, 2, 4]
    assert np.flatnonzero(data.ok).tolist() == good
    assert np.array_equal(data.heatmaps[good], made.heatmaps.numpy())
    assert not data.heatmaps[[0, 3]].any()
    assert np.array_equal(data.targets[good], made.targets.numpy())
    assert (data.targets[[0, 3]] == -1).all() and np.isnan(data.scores[[0, 3]]).all()
    assert np.array_equal(data.scores[good], made.scores.numpy())
    assert np.array_equal(data.ranges[good], made.ranges.numpy())
    assert np.array_equal(data.flat[good], made.flat.numpy())
    assert data.spec == spec and data.scale == 1 / 255
    assert made.places is not None
    best = made.places[:, 0].tolist()
    rows = data.table.to_pylist()
    assert [rows[i]["class_name"] for i in good] == ["xyz"[t] for t in best]
    assert [(rows[i]["lat"], rows[i]["lon"]) for i in good] == [(t + 1, t + 4) for t in best]
    assert rows[0]["status"] == "decode_error" and rows[0]["error"] == "broken"
    assert rows[0]["lat"] is None and rows[0]["targets"] is None


def test_columns_follow_the_classes() -> None:
    spec = CamSpec()
    plain = ShardFormat(spec, MAPS).schema().names
    assert ShardFormat(spec, MAPS, ClassTable(("a",))).schema().names == [*plain, "class_name"]
    places = ShardFormat(spec, MAPS, ClassTable((), (0.0,), (0.0,)))
    densities = [f"density_{km}km" for km in (1, 25, 200, 750, 2500)]
    assert places.schema().names == [*plain, "lat", "lon", "places", *densities]
    cells = ShardFormat(spec, MAPS, ClassTable((), (0.0,), (0.0,), ("1",)), has_truth=True)
    assert cells.schema().names == [
        *plain,
        *("lat", "lon", "s2_token", "places", *densities, "true_lat", "true_lon", "error_km"),
    ]
    named = ShardFormat(spec, MAPS, ClassTable(("a",)), has_truth=True)
    assert named.schema().names == [*plain, "class_name"]
    assert json.loads(places.schema().metadata[b"combicam.heatmap"])["shape"] == [2, 3, 4]


def test_images_that_are_not_finite(tmp_path: Path) -> None:
    made = results(3)
    made.finite[1] = False
    table = ShardFormat(CamSpec(targets=2), MAPS).table(records(3), made)
    assert table.column("status").to_pylist() == ["ok", "non_finite", "ok"]
    assert table.column("heatmap").null_count == table.column("scores").null_count == 1
    assert table.column("heatmap")[2].as_py() == made.heatmaps[2].numpy().tobytes()


def test_bytes_do_not_depend_on_how_rows_arrive(tmp_path: Path) -> None:
    shape = (1, 1024, 1024)  # 16 rows a group
    shard_format = ShardFormat(CamSpec(), MapFormat(1, shape[1:]))
    heatmaps = torch.arange(40, dtype=torch.uint8)[:, None, None, None].expand(-1, *shape)
    made = QuantisedExplanation(
        heatmaps,
        torch.zeros(40, 1, dtype=torch.long),
        torch.ones(40, 1),
        torch.ones(40, 1, 2),
        torch.zeros(40, 1, dtype=torch.bool),
        torch.ones(40, dtype=torch.bool),
    )
    table = shard_format.table(records(40), made)
    write(tmp_path / "a.parquet", table, [40], shard_format)
    write(tmp_path / "b.parquet", table, [3, 20, 1, 16], shard_format)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    assert pq.ParquetFile(tmp_path / "a.parquet").metadata.num_row_groups == 3


def test_death_before_the_rename_leaves_nothing_visible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(self: Path, target: Path) -> None:
        assert pq.read_table(self).num_rows == 2  # already whole, under its hidden name
        raise KeyboardInterrupt

    shard_format = ShardFormat(CamSpec(targets=2), MAPS)
    writer = ShardWriter(tmp_path / "s.parquet", shard_format)
    writer.add(shard_format.table(records(2), results(2)))
    monkeypatch.setattr(Path, "replace", dies)
    with pytest.raises(KeyboardInterrupt):
        writer.commit()
    assert not (tmp_path / "s.parquet").exists()
    writer.discard()
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_shard_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="and an index"):
        read_shard(tmp_path)
    with pytest.raises(RunError, match="no file at"):
        read_shard(tmp_path, 3)
    pq.write_table(pa.table({"a": [1]}), tmp_path / "x.parquet")
    with pytest.raises(RunError, match="another Parquet"):
        read_shard(tmp_path / "x.parquet")


def explanation(heatmaps: torch.Tensor) -> Explanation:
    n, k = heatmaps.shape[:2]
    ones = torch.ones(n, k)
    return Explanation(
        heatmaps, ones.long(), ones, torch.ones(n, 5), torch.ones(n, k, 2), ones.bool()
    )


def test_quantise_rounds_to_bytes() -> None:
    heatmaps = torch.tensor([0.0, 0.001, 0.5, 0.999, 1.0]).reshape(1, 1, 1, 5)
    found = quantise(explanation(heatmaps), MapFormat(1, (1, 5)))
    assert found.heatmaps.flatten().tolist() == [0, 0, 128, 255, 255]


def test_quantise_resizes() -> None:
    heatmaps = torch.linspace(0, 1, 64).expand(1, 1, 8, 64)
    found = quantise(explanation(heatmaps), MapFormat(1, (4, 16))).heatmaps
    assert found.shape == (1, 1, 4, 16)
    assert (found.long().diff(dim=-1) > 10).all()


def test_quantise_marks_each_image_that_is_not_finite() -> None:
    made = explanation(torch.ones(4, 1, 2, 2))
    made.heatmaps[0, 0, 1, 1] = torch.nan
    made.scores[1] = torch.inf
    made.ranges[2, 0, 1] = torch.nan
    assert quantise(made, MapFormat(1, (2, 2))).finite.tolist() == [False, False, False, True]


def test_quantise_marks_what_it_does_not_store() -> None:
    """A layer's map that is not finite, and a pixel between those that are sampled."""
    made = explanation(torch.ones(3, 1, 9, 9))
    made.heatmaps[0, 0, 2, 2] = torch.nan
    layer = torch.ones(3, 1, 3, 3)
    layer[1, 0, 2, 2] = torch.inf
    stored = MapFormat(1, (3, 3), (9, 9), True, ("a",), ((3, 3),))
    found = quantise(replace(made, layer_maps={"a": layer}), stored)
    assert found.finite.tolist() == [False, False, True] and found.heatmaps.min() == 255


def test_quantise_refuses_other_targets() -> None:
    with pytest.raises(RunError, match=r"\[B,2,H,W\]"):
        quantise(explanation(torch.ones(1, 1, 2, 2)), MapFormat(2, (2, 2)))
