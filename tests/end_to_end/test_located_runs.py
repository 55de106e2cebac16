"""Runs whose classes have places: their columns, truth, and what is made of them."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import combicam
from combicam.cli import main
from combicam.commands.convert import Config as Convert
from combicam.demo.planet import CELLS as PLANET
from combicam.demo.planet import postcard
from combicam.engine.geo.density import RADII_KM, prediction_density
from combicam.engine.geo.distance import distance_km
from combicam.engine.geo.location_estimate import LocationEstimator
from combicam.engine.outputs.cell_outlines import cell_outline
from combicam.engine.outputs.geojson import write_geojson
from combicam.engine.outputs.geoparquet import write_geoparquet
from combicam.engine.run.config import RunConfig
from combicam.engine.run.open_run import open_run
from combicam.engine.run.summary import RunSummary
from combicam.engine.runner import run_images
from combicam.errors import RunError
from combicam.export.classes.classes import ClassTable

LAT, LON = (10.0, 10.0, 10.1, -80.0, 48.0), (179.9, -179.9, 179.9, 0.0, 2.0)
CELLS = ClassTable(tuple("äbcde"), LAT, LON, ("1", "3", "5", "7", "9"))
DENSITIES = [f"density_{radius:g}km" for radius in RADII_KM]


def listed(tmp_path: Path, photos: Any, count: int = 20) -> Path:
    """A list of photos: p003 is broken; every fourth one does not say where it was taken."""
    paths = photos(tmp_path / "in", count)
    paths[3].write_bytes(b"")
    rows = [
        f"{path},{path.name}," + (",\n" if i % 4 == 1 else f"{i - 9},{i * 9 - 90}\n")
        for i, path in enumerate(paths)
    ]
    (tmp_path / "list.csv").write_text("path,id,latitude,longitude\n" + "".join(rows))
    return tmp_path / "list.csv"


def configured(tmp_path: Path, source: str, output: str = "run", **changes: Any) -> RunConfig:
    values = {"batch_size": 4, "shard_size": 8, "workers": 2, "progress": False} | changes
    return RunConfig(str(tmp_path / source), tmp_path / output, "fake", **values)  # type: ignore[arg-type]


def rows(run: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = open_run(run).table().to_pylist()
    return found


def files(run: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted((run / "shards").glob("*.parquet"))}


def test_columns_of_a_run_with_places(tmp_path: Path, photos: Any, fake: Any) -> None:
    listed(tmp_path, photos)
    summary = run_images(configured(tmp_path, "list.csv", top_places=3), fake(classes=CELLS))
    errors = []
    for i, row in enumerate(rows(tmp_path / "run")):
        true = (None, None) if i % 4 == 1 else (i - 9, i * 9 - 90)
        assert (row["true_lat"], row["true_lon"]) == true
        if i == 3:
            assert row["lat"] is row["s2_token"] is row["places"] is row["error_km"] is None
            assert row["density_1km"] is None
            continue
        best = row["targets"][0]
        assert (row["lat"], row["lon"]) == (LAT[best], LON[best])
        assert row["s2_token"] == "13579"[best]
        assert row["class_name"] == "äbcde"[best]
        places = row["places"]
        assert len(places) == 3 and places[0]["class"] == best
        assert [(p["lat"], p["lon"]) for p in places] == [
            (LAT[p["class"]], LON[p["class"]]) for p in places
        ]
        probabilities = torch.nn.functional.one_hot(torch.tensor(best), 5).float().softmax(0)
        assert [p["probability"] for p in places] == probabilities.topk(3).values.tolist()
        away = distance_km(LAT[best], LON[best], np.array(LAT), np.array(LON))
        for radius, name in zip(RADII_KM, DENSITIES, strict=True):
            assert row[name] == pytest.approx(float(probabilities.numpy()[away <= radius].sum()))
        if true[0] is None:
            assert row["error_km"] is None
        else:
            errors.append(float(distance_km(row["lat"], row["lon"], *true)))
            assert row["error_km"] == errors[-1]
    assert summary.accuracy is not None
    assert summary.accuracy.images == len(errors) == 14 and summary.accuracy.failed == 1
    assert summary.accuracy.median_km == np.median(errors)
    assert combicam.accuracy(tmp_path / "run") == summary.accuracy
    assert RunSummary.read(tmp_path / "run" / "summary.json") == summary


def test_interrupted_and_mended_runs_have_the_same_bytes(
    tmp_path: Path, photos: Any, fake: Any
) -> None:
    listed(tmp_path, photos)
    broken = (tmp_path / "in" / "p003.jpg", (tmp_path / "in" / "p004.jpg").read_bytes())
    run_images(configured(tmp_path, "list.csv"), fake(classes=CELLS))
    (tmp_path / "run" / "shards" / "00001.parquet").unlink()
    broken[0].write_bytes(broken[1])
    config = configured(tmp_path, "list.csv", retry_failed=True)
    summary = run_images(config, fake(classes=CELLS))
    assert summary.failures == {} and summary.accuracy is not None
    assert summary.accuracy.images == 15 and summary.accuracy.failed == 0
    run_images(configured(tmp_path, "list.csv", "whole"), fake(classes=CELLS))
    assert files(tmp_path / "run") == files(tmp_path / "whole")
    again = run_images(config, fake(classes=CELLS))
    assert again == summary  # nothing was left to do
    with pytest.raises(RunError, match="top_places"):
        run_images(configured(tmp_path, "list.csv", top_places=2), fake(classes=CELLS))


@pytest.mark.slow
def test_several_processes_know_the_truth(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    truth = ["id,lat,lon"]
    for i in range(24):
        Image.fromarray(postcard(i, i).image).save(tmp_path / "in" / f"{i}.png")
        truth.append(f"{i}.png,{PLANET[i].latitude},{PLANET[i].longitude}")
    (tmp_path / "truth.csv").write_text("\n".join(truth))
    for name, where in (("one", ["--device", "cpu"]), ("two", ["--devices", "cpu", "cpu"])):
        paths = [str(tmp_path / "in"), "-o", str(tmp_path / name)]
        options = ["--truth", str(tmp_path / "truth.csv"), "--shard-size", "8", "--workers", "2"]
        main(["run", *paths, "-m", "demo", *options, *where])
    # The network rounds by its number of threads, which is another one in each process.
    columns = ["id", "lat", "lon", "true_lat", "true_lon", "error_km"]
    one, two = (open_run(tmp_path / name).table(columns) for name in ("one", "two"))
    assert one.equals(two) and one.column("error_km").null_count == 0
    found = combicam.accuracy(tmp_path / "two")
    assert found is not None and found.within[0].share > 0.9


def test_a_file_of_truth(tmp_path: Path, photos: Any, fake: Any, capsys: Any) -> None:
    photos(tmp_path / "in", 6)
    truth = tmp_path / "truth.csv"
    truth.write_text("id,lat,lon\np000.jpg,1,2\np005.jpg,-3,4\nelse.jpg,0,0\n")
    config = configured(tmp_path, "in", truth=truth)
    run_images(config, fake(classes=CELLS))
    known = [(row["true_lat"], row["true_lon"]) for row in rows(tmp_path / "run")]
    assert known == [(1, 2), *[(None, None)] * 4, (-3, 4)]
    plain = configured(tmp_path, "in", "plain")
    assert run_images(plain, fake(classes=CELLS)).accuracy is None
    assert "error_km" not in open_run(tmp_path / "plain").dataset.schema.names
    assert combicam.accuracy(tmp_path / "plain") is None
    assert combicam.accuracy(tmp_path / "plain", truth) == combicam.accuracy(tmp_path / "run")
    main(["accuracy", str(tmp_path / "plain"), "--truth", str(truth), "--json"])
    assert json.loads(capsys.readouterr().out)["images"] == 2
    with pytest.raises(SystemExit, match=r"expected ground truth in .*plain, got none"):
        main(["accuracy", str(tmp_path / "plain")])
    (tmp_path / "other.csv").write_text("id,lat,lon\nelse.jpg,0,0\n")
    with pytest.raises(SystemExit, match=r"such as 'p000.jpg', got none of them.* 'else.jpg'"):
        main(["accuracy", str(tmp_path / "plain"), "--truth", str(tmp_path / "other.csv")])
    truth.write_text("id,lat,lon\np000.jpg,1,2.5\n")
    with pytest.raises(RunError, match="truth"):
        run_images(config, fake(classes=CELLS))


def test_runs_without_places_stay_as_they_are(tmp_path: Path, photos: Any, fake: Any) -> None:
    source, named = listed(tmp_path, photos), fake(classes=ClassTable(tuple("abcde")))
    run_images(configured(tmp_path, "in", "folder"), named)
    summary = run_images(configured(tmp_path, source.name), named)
    told = configured(tmp_path, "in", "told", truth=tmp_path / "list.csv")
    for explainer in (named, fake()):
        with pytest.raises(ValueError, match=r"with locations for truth=.*leave out --truth"):
            run_images(told, explainer)
    schemas = [open_run(tmp_path / name).dataset.schema for name in ("folder", "run")]
    assert schemas[0].equals(schemas[1], check_metadata=True)
    assert schemas[0].names[-1] == "class_name" and summary.accuracy is None
    for write in (write_geojson, write_geoparquet, combicam.accuracy):
        arguments = () if write is combicam.accuracy else (tmp_path / "out",)
        with pytest.raises(ValueError, match=r"whose classes have locations, got .*run without"):
            write(tmp_path / "run", *arguments)
    assert not (tmp_path / "out").exists()


def test_the_place_of_a_tie_is_that_of_the_map() -> None:
    placer = LocationEstimator(CELLS, 9, torch.device("cpu"))
    logits = torch.tensor([[2.0, 2.0, 0.0, 2.0, 1.0]]).expand(6, -1)
    explained = torch.tensor([0, 1, 3, 2, 4, -1])  # 2 and 4 are not the best; -1 is a region
    placed = placer(logits, explained)
    assert placed.classes[:3, 0].tolist() == [0, 1, 3]
    assert all(first in (0, 1, 3) for first in placed.classes[3:, 0].tolist())
    assert (placed.classes.sort(1)[0] == torch.arange(5)).all()  # each once
    probabilities = logits.softmax(1)
    assert torch.equal(placed.probabilities, probabilities.gather(1, placed.classes))
    at = placed.classes[:, 0]
    torch.testing.assert_close(placed.densities, prediction_density(probabilities, LAT, LON, at))
    with pytest.raises(RunError, match="expected 5 logits, one for each location"):
        placer(torch.zeros(1, 6), torch.zeros(1, dtype=torch.long))


def wkb_point(data: bytes) -> tuple[float, float]:
    order, kind, x, y = struct.unpack("<BIdd", data)
    assert (order, kind) == (1, 1)
    return x, y


def test_geoparquet(tmp_path: Path, photos: Any, fake: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("combicam.engine.outputs.geoparquet._GROUP_ROWS", 6)
    listed(tmp_path, photos)
    run_images(configured(tmp_path, "list.csv"), fake(classes=CELLS))
    output = tmp_path / "new" / "places.parquet"
    main(["convert", str(tmp_path / "run"), "--geoparquet", str(output)])
    file = pq.ParquetFile(output)
    assert file.schema.column(len(file.schema) - 1).physical_type == "BYTE_ARRAY"
    assert file.metadata.num_row_groups == 3  # shards of 7, 8 and 4 rows
    geo = json.loads(file.metadata.metadata[b"geo"])
    placed = [row for row in rows(tmp_path / "run") if row["lat"] is not None]
    column = geo["columns"].pop("geometry")
    assert geo == {"version": "1.1.0", "primary_column": "geometry", "columns": {}}
    lons, lats = ([row[name] for row in placed] for name in ("lon", "lat"))
    assert column.pop("bbox") == [min(lons), min(lats), max(lons), max(lats)]
    assert column == {"encoding": "WKB", "geometry_types": ["Point"]}
    table = file.read()
    assert table.schema.field("geometry").type == pa.binary()
    points = [wkb_point(data) for data in table.column("geometry").to_pylist()]
    assert points == list(zip(lons, lats, strict=True)) and len(points) == 19
    assert "heatmap" not in table.column_names and "status" not in table.column_names
    first = table.slice(0, 1).to_pylist()[0]
    assert first["id"] == "p000.jpg" and first["photo"] == (tmp_path / "in/p000.jpg").as_uri()
    assert first["error_km"] == placed[0]["error_km"] and first["places"] == placed[0]["places"]
    assert [p.name for p in output.parent.iterdir()] == ["places.parquet"]
    for form in ("--geoparquet", "--geojson"):
        with pytest.raises(SystemExit, match=r"expected a file name, got the folder \S+new"):
            main(["convert", str(tmp_path / "run"), form, str(output.parent)])
    assert [p.name for p in tmp_path.iterdir() if "tmp" in p.name] == []


def test_geojson(tmp_path: Path, photos: Any, fake: Any) -> None:
    listed(tmp_path, photos)
    run_images(configured(tmp_path, "list.csv"), fake(classes=CELLS))
    assert write_geojson(tmp_path / "run", tmp_path / "places.geojson") == 19
    text = (tmp_path / "places.geojson").read_text(encoding="utf-8")
    found = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert found.keys() == {"type", "features"} and found["type"] == "FeatureCollection"
    assert len(text.splitlines()) == 19 + 2
    placed = [row for row in rows(tmp_path / "run") if row["lat"] is not None]
    for feature, row in zip(found["features"], placed, strict=True):
        assert feature["type"] == "Feature" and feature["id"] == row["id"]
        point = {"type": "Point", "coordinates": [row["lon"], row["lat"]]}
        assert feature["geometry"] == point
        properties = feature["properties"]
        assert properties["photo"] == Path(row["uri"]).as_uri()
        for name in ("class_name", "s2_token", "error_km", "places"):
            assert properties[name] == row[name]
        assert not properties.keys() & {"heatmap", "lat", "lon", "id", "status", "low"}
        assert math.isclose(properties["density_2500km"], row["density_2500km"])


def test_geojson_of_cells(tmp_path: Path, photos: Any, fake: Any) -> None:
    listed(tmp_path, photos)
    run_images(configured(tmp_path, "list.csv"), fake(classes=CELLS))
    run, output = str(tmp_path / "run"), tmp_path / "cells.geojson"
    main(["convert", run, "--geojson", str(output), "--cells"])
    features = json.loads(output.read_text(encoding="utf-8"))["features"]
    placed = [row for row in rows(tmp_path / "run") if row["lat"] is not None]
    assert len(features) == len(placed) == 19
    for feature, row in zip(features, placed, strict=True):
        expected = json.loads(json.dumps(cell_outline(row["s2_token"])))
        assert feature["geometry"] == expected and feature["id"] == row["id"]
        assert feature["properties"]["lat"] == row["lat"]
    with pytest.raises(ValueError, match="--geojson FILE with --cells"):
        Convert(tmp_path / "run", tmp_path / "tars", cells=True)
    points = replace(CELLS, s2_tokens=())
    run_images(configured(tmp_path, "list.csv", "points"), fake(classes=points))
    with pytest.raises(ValueError, match=r"have S2 cells, got \S+points without; write points"):
        write_geojson(tmp_path / "points", tmp_path / "none.geojson", cells=True)
    assert not (tmp_path / "none.geojson").exists()
