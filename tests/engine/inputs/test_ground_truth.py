"""True places of lists and of files of their own."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from combicam.engine.inputs.entry import Entry
from combicam.engine.inputs.ground_truth import place_columns, read_truth, truth_digest, with_truth
from combicam.engine.inputs.listing import list_inputs
from combicam.engine.inputs.manifest import Manifest, write_manifest
from combicam.errors import RunError


def written(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def truths(entries: object) -> list[tuple[float | None, float | None]]:
    return [(e.true_lat, e.true_lon) for e in entries]  # type: ignore[attr-defined]


@pytest.mark.parametrize("names", ["latitude,longitude", "lat,lon", "true_lat,true_lon"])
def test_lists_carry_places(names: str, tmp_path: Path) -> None:
    text = f"path,{names}\na.jpg,-33.9,151.2\nb.jpg,,\nc.jpg,NA,nan\nd.jpg,90,-180\n"
    entries = list(list_inputs(written(tmp_path / "l.csv", text)))
    assert truths(entries) == [(-33.9, 151.2), (None, None), (None, None), (90, -180)]
    lat, lon = names.split(",")
    latitudes = pa.array([-33.9, None], "float32")
    table = pa.table({"path": ["a.jpg", "b.jpg"], lon: [151.2, None], lat: latitudes})
    pq.write_table(table, tmp_path / "l.parquet")
    found = truths(list_inputs(str(tmp_path / "l.parquet")))
    assert found == [(pytest.approx(-33.9), 151.2), (None, None)]


def test_true_places_come_before_predicted_ones() -> None:
    assert place_columns(["lat", "lon", "true_lon", "true_lat"], "x") == ("true_lat", "true_lon")
    assert place_columns(["path", "id"], "x") is None


@pytest.mark.parametrize(
    "header, row, message",
    [
        ("lat", "1", r"got lat alone"),
        ("lat,longitude", "1,2", r"got lat, longitude alone"),
        ("lat,lon", "1,", r"or neither, got '1' and '' in row 2"),
        ("lat,lon", "91,0", r"latitude in \[-90, 90\].*got '91' and '0' in row 2"),
        ("lat,lon", "0,inf", r"got '0' and 'inf' in row 2"),
        ("lat,lon", "48°51',2", r"expected degrees, got .48°51'. in row 2"),
    ],
)
def test_places_that_are_none(header: str, row: str, message: str, tmp_path: Path) -> None:
    comma = row.count(",") * ","
    text = f"path,{header}\na.jpg,{comma}\nb.jpg,{row}\n"
    with pytest.raises(ValueError, match=message):
        list(list_inputs(written(tmp_path / "l.csv", text)))


def test_the_manifest_has_the_columns_only_with_places(tmp_path: Path) -> None:
    entries = [Entry("a", "/a", true_lat=1.5, true_lon=-2.5), Entry("b", "/b"), Entry("c", "/c")]
    write_manifest(tmp_path / "m.parquet", entries, 2)
    with Manifest(tmp_path / "m.parquet") as manifest:
        assert manifest.has_truth and manifest.shard(0) == entries[:2]
        assert manifest.shard(1) == entries[2:]
    write_manifest(tmp_path / "n.parquet", entries[1:], 2)
    with Manifest(tmp_path / "n.parquet") as manifest:
        assert not manifest.has_truth and manifest.shard(0) == entries[1:]
    assert "true_lat" not in pq.read_schema(tmp_path / "n.parquet").names


def test_files_of_truth(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    written(path, "lat,id,lon,city\n38.7,b,-9.1,Lisbon\n,c,,\n1,elsewhere,1,\n")
    truth = read_truth(path)
    assert truth == {"b": (38.7, -9.1), "c": (None, None), "elsewhere": (1, 1)}
    entries = [Entry("a", "/a", true_lat=5, true_lon=6), Entry("b", "/b", true_lat=0, true_lon=0)]
    assert truths(with_truth(entries, truth)) == [(5, 6), (38.7, -9.1)]
    columns = {"id": [1, 2], "latitude": [3.0, None], "longitude": [4.0, None]}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    assert read_truth(tmp_path / "t.parquet") == {"1": (3, 4), "2": (None, None)}
    before = truth_digest(path)
    written(path, "id,lat,lon\n")
    assert truth_digest(path) != before and truth_digest(None) is None


def test_files_of_truth_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"columns id and true_lat and true_lon, or .*got \['id'"):
        read_truth(Path(written(tmp_path / "a.csv", "id,city\na,Rome\n")))
    with pytest.raises(ValueError, match="got 'a' again in row 3"):
        read_truth(Path(written(tmp_path / "b.csv", "id,lat,lon\na,1,2\nb,1,2\na,1,2\n")))
    with pytest.raises(ValueError, match=r"such as 'x/a.jpg', got none of them; the file has 'a'"):
        list(with_truth([Entry("x/a.jpg", "/a")], {"a": (1, 2)}))
    with pytest.raises(ValueError, match=r"an id in row 2 of .*got none"):
        read_truth(Path(written(tmp_path / "c.csv", "lat,id,lon\n1,a,2\n3,,4\n")))
    with pytest.raises(ValueError, match=r"an id in row 2 of .*got none"):
        read_truth(Path(written(tmp_path / "d.csv", "lat,lon,id\n1,2,a\n3,4\n")))
    (tmp_path / "e.csv").write_bytes(b"id,lat,lon\n\xe4,1,2\n")
    (tmp_path / "e.parquet").write_text("no table")
    with pytest.raises(ValueError, match=r"ground truth: expected \S+e.csv as CSV in UTF-8"):
        read_truth(tmp_path / "e.csv")
    with pytest.raises(RunError, match=r"expected \S+e.parquet to be an intact Parquet file"):
        read_truth(tmp_path / "e.parquet")
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(FileNotFoundError, match="ground truth: expected a file"):
            read_truth(path)
