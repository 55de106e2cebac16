"""Files of classes: what is read, and what is refused with the row's number."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from combicam import CellTable, ClassTable, ModelConfig, ModelError, read_cells, write_cells
from combicam.export.classes import s2
from combicam.export.classes.cell_files import read_classes
from combicam.export.models.models import load_model

# Rows as the GeoEstimation project published them.
HEADER = "class_label,hex_id,imgs_per_cell,latitude_mean,longitude_mean"
ROWS = (
    "0,8744,3376,39.28162046949048,-107.94343695171831",
    "1,364,2728,35.9593396631232,108.13288446407641",
    "2,89c6c74,235,39.98461821276593,-75.21640030212768",
    "3,009b,3489,-22.978691987388846,-43.24448447979361",
    "4,0f,4952,11.614377453150261,-9.831330920436127",
)
PREAMBLE = "num_images: 4723695\nmin_concept_probability: ---\n"


def geoestimation(path: Path, *rows: str, preamble: str = PREAMBLE) -> Path:
    path.write_text(f"{preamble}{HEADER}\n" + "".join(f"{row}\n" for row in rows))
    return path


@pytest.mark.parametrize("preamble", ["", PREAMBLE, "\ufeff" + PREAMBLE])
def test_cells_of_geoestimation(preamble: str, tmp_path: Path) -> None:
    cells = read_cells(geoestimation(tmp_path / "cells.csv", *reversed(ROWS), preamble=preamble))
    assert cells.tokens == ("8744", "364", "89c6c74", "009b", "0f")
    assert cells.levels.tolist() == [5, 3, 11, 6, 2]
    assert cells.latitudes[3] == -22.978691987388846
    assert [cells.holding(*place) for place in zip(cells.latitudes, cells.longitudes, strict=True)]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (("4,0f,", "4,4.7E+064,"), r"row 8 of .*got '4.7E\+064': a spreadsheet"),
        (("1,364,", "1,364.0,"), r"row 5 of .*got '364.0': a spreadsheet"),
        (("3,009b,", "3,9b,"), r"row 7 of .*got -22.9787,-43.2445 for 9b, whose centre"),
        (("2,89c6c74,", "2,89c6c7z,"), r"row 6 of .*got '89c6c7z', which no S2 cell"),
        (("2,89c6c74,", "2,f9c6c74,"), r"row 6 of .*got 'f9c6c74', which no S2 cell"),
        (("2,89c6c74,", "2,89c6c72,"), r"row 6 of .*got '89c6c72', which no S2 cell"),
        (("2,89c6c74,", "2,,"), r"row 6 of .*got ''"),
        (("1,364,", "7,364,"), "classes 0..4, each once, got 2 in row 6"),
        (("39.98461821276593", "north"), "a number as latitude in row 6 .*got 'north'"),
        (("39.98461821276593", "99.9"), "row 6 of .*latitude in"),
        (("0,8744,3376,", "0,8744,"), "expected 5 values in row 4 .*got 4"),
        (("0,8744,", "zero,8744,"), "a number as class in row 4"),
        (("0,8744,", "0.5,8744,"), "a whole number as class in row 4"),
        (("class_label", "label"), "no header with class or class_label"),
    ],
)
def test_damaged_cells(damage: tuple[str, str], words: str, tmp_path: Path) -> None:
    path = geoestimation(tmp_path / "cells.csv", *ROWS)
    path.write_text(path.read_text().replace(*damage))
    with pytest.raises(ValueError, match=words):
        read_classes(path)


def test_means_across_the_dateline_are_mended(tmp_path: Path) -> None:
    # A cell of level 0 lies on both sides; the mean of 179 and -177 is 1, in another ocean.
    path = geoestimation(tmp_path / "cells.csv", "0,7,9,-10.0,1.0", "1,1,9,-10.0,1.0")
    cells = read_cells(path)
    assert abs(cells.longitudes[0]) == 180 and cells.longitudes[1] == 1.0
    assert cells.latitudes[0] == -10.0


def test_our_own_columns(tmp_path: Path) -> None:
    ids = np.array([s2.cell_id(token) for token in ("89c25", "8744", "009b")], np.uint64)
    cells = CellTable(*s2.centers(ids), ids, ("a, b", "c", "d"))
    write_cells(cells, tmp_path / "cells.csv")
    assert (tmp_path / "cells.csv").read_text().startswith("class,name,latitude,longitude,s2_token")
    assert read_cells(tmp_path / "cells.csv").to_classes() == cells.to_classes()
    columns = {"s2_token": cells.tokens[::-1], "class": [2, 1, 0], "name": cells.names[::-1]}
    pq.write_table(pa.table(columns), tmp_path / "cells.parquet")
    # No places: the cells' centres, which here they were.
    assert read_cells(tmp_path / "cells.parquet").to_classes() == cells.to_classes()
    columns["s2_token"] = [89, 8744, 9]
    pq.write_table(pa.table(columns), tmp_path / "cells.parquet")
    with pytest.raises(ValueError, match=r"row 3 of .*got 9: zeros at the start"):
        read_classes(tmp_path / "cells.parquet")
    pq.write_table(pa.table({"name": ["a"]}), tmp_path / "cells.parquet")
    with pytest.raises(ValueError, match=r"columns class,name.*got name"):
        read_classes(tmp_path / "cells.parquet")
    write_cells(CellTable(np.array([1.0]), np.array([2.0])), tmp_path / "alone.csv")
    assert read_classes(tmp_path / "alone.csv") == ClassTable((), (1.0,), (2.0,))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickled_places(protocol: int, tmp_path: Path) -> None:
    path = tmp_path / "cells.pkl"
    lat, lon = np.array([38.7, -90.0, 0.0]), np.array([-9.1, 180.0, 0.25])
    for content in (
        [(np.mean([a]), float(o)) for a, o in zip(lat, lon, strict=True)],
        np.stack([lat, lon], 1),
        np.asfortranarray(np.stack([lat, lon], 1).astype(">f8")),
        tuple(map(list, zip(lat, lon, strict=True))),
    ):
        path.write_bytes(pickle.dumps(content, protocol))
        assert read_classes(path) == ClassTable((), tuple(lat.tolist()), tuple(lon.tolist()))


class Evil:
    def __init__(self, function: object, *args: object) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple[object, ...]:
        return self.call


def test_pickles_that_would_run_code(tmp_path: Path) -> None:
    import os

    path, witness = tmp_path / "cells.pkl", tmp_path / "witness"
    for evil, name in (
        (Evil(os.system, f"touch {witness}"), "posix.system"),
        (Evil(eval, f"open({str(witness)!r}, 'w')"), "builtins.eval"),
        (Evil(np.load, str(witness)), "numpy.load"),
        (Evil(np.lib.format.open_memmap, str(witness), "w+", "f8", (1,)), "open_memmap"),
    ):
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            path.write_bytes(pickle.dumps([(1.0, 2.0), evil], protocol))
            with pytest.raises(ModelError, match=f"{name}|{name.replace('builtins', '.*')}"):
                read_classes(path)
            assert not witness.exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (pickle.dumps(np.array([object()])), "the type 'O8'"),
        (pickle.dumps(np.array(["a"])), "the type 'U1'"),
        (b"\x80\x04cnumpy\nndarray\n(I9\ntR.", "cannot be read"),
        (b"\x80\x04P0\n.", "persistent reference|cannot be read"),
        (b"\x80\x04]", "cannot be read"),
        (b"", "cannot be read"),
        (b"lat,lon", "cannot be read"),
    ],
)
def test_pickles_that_are_none(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "cells.pkl").write_bytes(content)
    with pytest.raises(ModelError, match=words):
        read_classes(tmp_path / "cells.pkl")


@pytest.mark.parametrize(
    "content", [7, "ab", [1, 2], [(1, 2, 3)], {1: 2}, [], [("a", 1)], [(9e9, 1)]]
)
def test_pickles_of_something_else(content: object, tmp_path: Path) -> None:
    (tmp_path / "cells.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=r"cells\.pkl.*(list of|empty list|latitude in)"):
        read_classes(tmp_path / "cells.pkl")


def test_models_take_every_format(tmp_path: Path) -> None:
    path = geoestimation(tmp_path / "cells.csv", *ROWS)
    (tmp_path / "cells.pkl").write_bytes(pickle.dumps([(1.0, 2.0)] * 5))
    for file, tokens in ((path, 5), (tmp_path / "cells.pkl", 0)):
        config = ModelConfig(
            "torchvision:resnet18", random_weights=True, num_classes=5, classes=file
        )
        classes = load_model(config).classes
        assert classes is not None and len(classes.s2_tokens) == tokens and len(classes) == 5
    with pytest.raises(FileNotFoundError, match="classes: expected a file"):
        read_classes(tmp_path / "none.csv")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("class\n0\n", "class and at least one more, each once, got class$"),
        ("class,lat,latitude,longitude\n0,1,2,3\n", "each once, got class,lat,latitude,longitude"),
        ("class,name,longitude\n0,a,1\n", "a number as latitude in row 2 of .*got None"),
        ("class,name,s2_token\n0,a,\n", r"row 2 of \S+: expected an S2 token, got ''"),
        ("class,name\n0,\udce4\n", r"classes: expected \S+cells.csv as CSV in UTF-8"),
    ],
)
def test_columns_that_say_no_more_than_a_number(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "cells.csv"
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(ValueError, match=words):
        read_classes(path)


def test_names_of_columns_that_are_meant(tmp_path: Path) -> None:
    path = tmp_path / "cells.csv"
    path.write_text("class, name, lat, lon\n0, a, 1, 2\n")
    assert read_classes(path) == ClassTable((" a",), (1.0,), (2.0,))


def test_parquet_of_another_kind(tmp_path: Path) -> None:
    path = tmp_path / "cells.parquet"
    path.write_text("no table")
    with pytest.raises(ValueError, match=r"classes: expected \S+cells.parquet as CSV in UTF-8 or"):
        read_classes(path)
    pq.write_table(pa.table({"class": [0], "class_label": [0], "name": ["a"]}), path)
    with pytest.raises(ValueError, match="each once, got class,class_label,name"):
        read_classes(path)
    pq.write_table(pa.table({"class": [0], "name": [2024]}), path)
    assert read_classes(path).names == ("2024",)
    pq.write_table(pa.table({"class": [0], "s2_token": [b"89c25"]}), path)
    with pytest.raises(ValueError, match="an S2 token as text, got b'89c25'"):
        read_classes(path)
