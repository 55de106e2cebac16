"""Files of others with anything in them: the answer is entries, or one of the errors that say why.

A few seconds here; ``FUZZ_EXAMPLES=20000`` makes it an hour.
"""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from combicam.engine.images.decode import DecodeConfig, decode_image
from combicam.engine.images.formats import HEAD, image_format
from combicam.engine.inputs.ground_truth import read_truth
from combicam.engine.inputs.listing import list_inputs
from combicam.errors import CombicamError, DecodeError
from combicam.export.classes.classes import ClassTable
from combicam.export.preprocess import Preprocess

FUZZ = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "60")),
    suppress_health_check=list(HealthCheck),
)
TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
CELL = st.one_of(TEXT, st.sampled_from(["a.jpg", "", "path", "id", "lat", "lon", "1", "91", "nan"]))


def tar_bytes() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name in ("a.jpg", "d/" * 60 + "b.jpg", "c.json"):
            info = tarfile.TarInfo(name)
            info.size = 700
            tar.addfile(info, io.BytesIO(b"x" * 700))
        link = tarfile.TarInfo("l.jpg")
        link.type, link.linkname = tarfile.LNKTYPE, "a.jpg"
        tar.addfile(link)
    return file.getvalue()


def parquet_bytes() -> bytes:
    file = io.BytesIO()
    image = [{"bytes": b"x" * 50, "path": "a.jpg"}] * 5
    pq.write_table(pa.table({"image": image, "id": list("abcde")}), file)
    return file.getvalue()


def arrow_bytes() -> bytes:
    table = pa.table({"image": pa.array([b"x" * 50] * 5, pa.binary())})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


@st.composite
def damaged(draw: st.DrawFn, whole: Callable[[], bytes]) -> bytes:
    """A whole file, cut, or with some bytes replaced, doubled or left out."""
    data = bytearray(whole())
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        kind = draw(st.sampled_from(["cut", "set", "insert", "remove", "zero"]))
        some = draw(st.binary(max_size=8))
        if kind == "cut":
            data = data[:at]
        elif kind == "set":
            data[at : at + len(some)] = some
        elif kind == "insert":
            data[at:at] = some
        elif kind == "remove":
            del data[at : at + len(some)]
        else:
            data[at : at + 512] = bytes(min(512, len(data) - at))
    return bytes(data)


def listed(name: str, data: bytes) -> None:
    """List a file, and read what it names."""
    with TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_bytes(data)
        try:
            entries = list(list_inputs(str(path)))
        except (ValueError, CombicamError):
            return
        for entry in entries:
            entry.id.encode("utf-8")
            entry.uri.encode("utf-8")
            try:
                entry.read()
            except OSError:
                continue


@FUZZ
@given(
    st.sampled_from(["csv", "tsv", "jsonl", "txt"]),
    st.one_of(
        st.binary(max_size=60),
        st.lists(st.lists(CELL, max_size=4), max_size=5).map(
            lambda rows: "\n".join(",".join(row) for row in rows).encode()
        ),
        st.lists(st.dictionaries(CELL, st.one_of(CELL, st.none(), st.floats())), max_size=4).map(
            lambda rows: "\n".join(map(repr, rows)).replace("'", '"').encode()
        ),
    ),
    st.sampled_from([b"", b"path,id,lat,lon\n", b"\xff\xfe", b"\xef\xbb\xbfpath\tid\n"]),
)
@example("csv", b'"\n', b"path,id,lat,lon\n")
@example("jsonl", b'{"path": ' + b"[" * 100_000, b"")
@example("txt", b"\x00", b"\xff\xfe")
def test_lists(suffix: str, data: bytes, start: bytes) -> None:
    listed(f"l.{suffix}", start + data)


@FUZZ
@given(st.sampled_from(["tar", "tar.gz"]), damaged(tar_bytes))
def test_tars(suffix: str, data: bytes) -> None:
    listed(f"t.{suffix}", gzip.compress(data) if suffix == "tar.gz" else data)


@FUZZ
@given(st.sampled_from(["tar.gz", "tar.zst", "tar.bz2", "tar.xz"]), damaged(tar_bytes))
def test_what_is_not_compressed(suffix: str, data: bytes) -> None:
    listed(f"t.{suffix}", data)


@FUZZ
@given(damaged(lambda: gzip.compress(tar_bytes())))
def test_compressed_tars(data: bytes) -> None:
    listed("t.tar.gz", data)


@FUZZ
@given(damaged(parquet_bytes))
def test_parquet(data: bytes) -> None:
    listed("t.parquet", data)


@FUZZ
@given(damaged(arrow_bytes))
def test_arrow(data: bytes) -> None:
    with TemporaryDirectory() as folder:
        Path(folder, "t.arrow").write_bytes(data)
        try:
            entries = list(list_inputs(folder))
        except (ValueError, CombicamError, OSError):
            return
        for entry in entries:
            try:
                entry.read()
            except OSError:
                continue


@FUZZ
@given(st.binary(max_size=80), st.sampled_from([b"", b"id,lat,lon\n", b"class,name\n"]))
def test_ground_truth_and_class_tables(data: bytes, start: bytes) -> None:
    with TemporaryDirectory() as folder:
        for suffix in ("csv", "json", "txt"):
            path = Path(folder, f"t.{suffix}")
            path.write_bytes(start + data)
            for read in (read_truth, ClassTable.from_csv):
                try:
                    read(path)
                except (ValueError, CombicamError):
                    continue


WHOLE = {}


def images() -> list[bytes]:
    from PIL import Image

    if not WHOLE:
        photo = Image.effect_noise((40, 30), 80).convert("RGB")
        for kind in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"):
            file = io.BytesIO()
            photo.save(file, kind)
            WHOLE[kind] = file.getvalue()
    return list(WHOLE.values())


@FUZZ
@pytest.mark.filterwarnings("ignore")
@given(st.integers(0, 6).flatmap(lambda i: damaged(lambda: images()[i])), st.booleans())
def test_images(data: bytes, tolerant: bool) -> None:
    image_format(data[:HEAD])
    try:
        found = decode_image(
            data, Preprocess((8, 8)), DecodeConfig(tolerant=tolerant, max_pixels=10**6)
        )
    except DecodeError:
        return
    assert found.pixels.shape == (8, 8, 3)
