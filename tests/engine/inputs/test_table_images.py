"""Images in Parquet and Arrow files: Hugging Face's, Spark's, and one's own."""

from __future__ import annotations

import os
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from combicam.engine.inputs import table_images
from combicam.engine.inputs.entry import Entry
from combicam.engine.inputs.listing import list_inputs
from combicam.engine.inputs.selection import Tally

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def structs(*values: tuple[bytes | None, str | None] | None) -> Any:
    rows = [None if value is None else {"bytes": value[0], "path": value[1]} for value in values]
    return pa.array(rows, STRUCT)


def read(entry: Entry) -> bytes | None:
    try:
        return entry.read()
    except OSError:
        return None


def test_rows_have_bytes_or_a_path(tmp_path: Path) -> None:
    (tmp_path / "b.jpg").write_bytes(b"of a file")
    images = structs((b"one", "1.jpg"), (None, "b.jpg"), None, (None, None), (b"", None))
    pq.write_table(pa.table({"image": images, "label": range(5)}), tmp_path / "t.parquet")
    entries = list(list_inputs(str(tmp_path / "t.parquet")))
    assert [entry.id for entry in entries] == [f"t.parquet::{i}" for i in range(5)]
    assert [read(entry) for entry in entries] == [b"one", b"of a file", None, None, b""]
    assert Entry(entries[0].id, entries[0].uri, 9) != entries[0] and entries[0].size is None


def not_utf8(*values: bytes) -> Any:
    return pa.array(values, pa.binary()).view(pa.string())


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    """As a file system may have them: beside the bytes they do not matter, without them they do."""
    folder = tmp_path / "tables"
    folder.mkdir()
    (folder / os.fsdecode(b"b\x80.jpg")).write_bytes(b"of a file")
    data = pa.array([b"one", None], pa.binary())
    names = not_utf8(b"a\x80.jpg", b"b\x80.jpg")
    table = pa.table({"image": pa.StructArray.from_arrays([data, names], fields=[*STRUCT])})
    pq.write_table(table, folder / "t.parquet")
    found = list_inputs(str(folder / "t.parquet"))
    assert [read(entry) for entry in found] == [b"one", b"of a file"]
    listed = pa.table({"path": not_utf8(b"b\x80.jpg"), "id": not_utf8(b"i\x80")})
    pq.write_table(listed, folder / "l.parquet")
    (entry,) = list_inputs(str(folder / "l.parquet"))
    assert (entry.id, entry.read()) == ("i\\x80", b"of a file")


@pytest.mark.parametrize("name", table_images.BYTES_COLUMNS)
@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_columns_of_bytes_with_ids_and_places(tmp_path: Path, name: str, kind: Any) -> None:
    values = {
        "id": [7, 8],
        name: pa.array([b"x", b"y"], kind),
        "lat": [1.0, None],
        "lng": [2.0, None],
    }
    pq.write_table(pa.table({"path": ["p", "q"], **values}), tmp_path / "t.parquet")
    first, second = list_inputs(str(tmp_path / "t.parquet"))
    assert (first.id, first.true_lat, first.true_lon, first.read()) == ("7", 1, 2, b"x")
    assert (second.id, second.true_lat, second.read()) == ("8", None, b"y")


@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_rows_in_any_order_and_row_groups(
    tmp_path: Path, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_images, "_REMEMBERED", 2000)
    monkeypatch.setattr(table_images, "_ROWS", 3)
    source = random.Random(0)
    images = [source.randbytes(source.randrange(400)) for _ in range(60)]
    table = pa.table({"photo": structs(*((data, None) for data in images))})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=rows)
    entries = list(list_inputs(str(tmp_path / "t.parquet")))
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(Entry.read, entries)) == images
    order = source.sample(range(60), 60)
    assert [entries[i].read() for i in order] == [images[i] for i in order]
    table_images._images.cache_clear()
    assert entries[59].read() == images[59]  # the first that is asked for


def test_rows_are_read_once_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pa.table({"image": structs(*((b"%d" % i, None) for i in range(300)))})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=100)
    entries = list(list_inputs(str(tmp_path / "t.parquet")))
    begun: list[int] = []
    begin = table_images.ParquetImages._begin
    monkeypatch.setattr(
        table_images.ParquetImages,
        "_begin",
        lambda self, row: [begun.append(row), begin(self, row)],
    )
    with ThreadPoolExecutor(8) as pool:
        assert [int(data) for data in pool.map(Entry.read, entries)] == list(range(300))
    assert len(begun) <= 3 + 8  # threads that cross the border of two row groups


def test_a_folder_of_hugging_face(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    from PIL import Image

    colours = ["red", "lime", "blue"]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    photos = [Image.new("RGB", (8, 8), colour) for colour in colours]
    found = datasets.Dataset.from_dict({"image": photos, "label": [0, 1, 2]}, features=features)
    found.save_to_disk(tmp_path / "plain", num_shards=2)
    datasets.DatasetDict({"train": found, "test": found}).save_to_disk(tmp_path / "splits")
    (tmp_path / "hub" / "data").mkdir(parents=True)
    found.to_parquet(tmp_path / "hub" / "data" / "train-00000-of-00001.parquet")
    (tmp_path / "hub" / "README.md").write_text("a card")
    for name, count in (("plain", 3), ("splits", 6), ("hub", 3)):
        entries = list(list_inputs(str(tmp_path / name)))
        assert len({entry.id for entry in entries}) == count
        assert all(entry.read().startswith(b"\x89PNG") for entry in entries)
    assert entries[0].id == "data/train-00000-of-00001.parquet::0"


def test_folders_of_spark(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"a")
    for kind in ("parquet", "csv"):
        folder = tmp_path / f"list.{kind}"
        folder.mkdir()
        (folder / "_SUCCESS").touch()
        for part in range(2):
            name = f"part-{part:05d}-c000.snappy.parquet" if kind == "parquet" else f"{part}.csv"
            (folder / f".{name}.crc").write_bytes(b"crc")
            row = {"path": [str(tmp_path / "a.jpg")], "id": [f"{part}"]}
            if kind == "parquet":
                pq.write_table(pa.table(row), folder / name)
            else:
                (folder / name).write_text(f"path,id\n{row['path'][0]},{part}\n")
        tally = Tally()
        entries = list(list_inputs(str(folder), tally=tally))
        assert [(entry.id, entry.read()) for entry in entries] == [("0", b"a"), ("1", b"a")]
        assert tally.ignored == {".crc": 2, "no suffix": 1}
    content = pa.table(
        {"path": ["file:/x"], "length": [1], "content": pa.array([b"!"], pa.binary())}
    )
    pq.write_table(content, tmp_path / "binary.parquet")
    (entry,) = list_inputs(str(tmp_path / "binary.parquet"))
    assert entry.read() == b"!"


def test_tables_beside_images_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"a")
    pq.write_table(pa.table({"path": ["b.jpg"]}), tmp_path / "meta.parquet")
    tally = Tally()
    assert [entry.id for entry in list_inputs(str(tmp_path), tally=tally)] == ["a.jpg"]
    assert tally.ignored == {".parquet": 1}


def test_tables_that_change_or_vanish(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"image": pa.array([b"x", b"y"], pa.binary())}), path)
    entries = list(list_inputs(str(path)))
    assert entries[1].read() == b"y"
    pq.write_table(pa.table({"image": pa.array([b"z"], pa.binary())}), path)
    assert entries[0].read() == b"z"
    with pytest.raises(OSError, match="expected row 1 of"):
        entries[1].read()
    path.write_bytes(b"PAR1 no more")
    with pytest.raises(OSError, match="expected row 0 of"):
        entries[0].read()
    path.unlink()
    with pytest.raises(FileNotFoundError):
        entries[0].read()


def test_a_damaged_row_group_leaves_the_others(tmp_path: Path) -> None:
    path, source = tmp_path / "t.parquet", random.Random(0)
    images = [source.randbytes(300) for _ in range(30)]
    table = pa.table({"image": pa.array(images, pa.binary())})
    pq.write_table(table, path, row_group_size=10, use_dictionary=False, compression="zstd")
    entries = list(list_inputs(str(path)))
    column = pq.ParquetFile(path).metadata.row_group(1).column(0)
    data = bytearray(path.read_bytes())
    data[column.data_page_offset : column.data_page_offset + 100] = bytes(100)
    path.write_bytes(data)
    found = [read(entry) for entry in entries]
    assert found[:10] == images[:10] and found[20:] == images[20:]
    assert found[10:20] == [None] * 10
    order = source.sample(range(30), 30)
    assert [read(entries[i]) for i in order] == [found[i] for i in order]
