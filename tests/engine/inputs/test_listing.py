"""What INPUT can be."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from combicam.engine.inputs.entry import Entry, path_uri, uri_path
from combicam.engine.inputs.listing import expand_ranges, list_inputs


def ids(source: Path | str) -> list[str]:
    return [entry.id for entry in list_inputs(str(source))]


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


def make_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_folder_is_recursive_sorted_and_knows_images(tmp_path: Path) -> None:
    touch(tmp_path, "b/1.JPG", "a/1.jpg", "c.png", "a/1.txt", "notes.md", "a.webp")
    assert ids(tmp_path) == ["a.webp", "a/1.jpg", "b/1.JPG", "c.png"]


def test_folder_called_like_an_image_is_an_input_too(tmp_path: Path) -> None:
    touch(tmp_path, "x.jpg/inner.png")
    assert ids(tmp_path) == ["x.jpg", "x.jpg/inner.png"]
    folder = next(list_inputs(str(tmp_path)))
    with pytest.raises(OSError, match="regular file"):
        folder.read()


def test_named_pipe_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.jpg")
    (entry,) = list_inputs(str(tmp_path))
    with pytest.raises(OSError, match="regular file"):
        entry.read()


def test_glob_ids_are_relative_to_the_fixed_part(tmp_path: Path) -> None:
    touch(tmp_path, "x/a.jpg", "y/a.jpg", "y/deep/b.jpg", "y/a.txt")
    assert ids(tmp_path / "*/a.*") == ["x/a.jpg", "y/a.jpg"]
    assert ids(tmp_path / "y/**/*.jpg") == ["a.jpg", "deep/b.jpg"]


def test_names_with_wildcards_are_taken_literally(tmp_path: Path) -> None:
    touch(tmp_path, "a[1]/p.jpg", "a1/q.jpg")
    assert ids(tmp_path / "a[1]") == ["p.jpg"]


def test_text_list_keeps_its_order_and_its_missing_files(tmp_path: Path) -> None:
    touch(tmp_path, "photos/b.jpg", "photos/a.jpg")
    listing = tmp_path / "list.txt"
    listing.write_bytes(b"photos/b.jpg\r\n\nphotos/gone.jpg\nphotos/a.jpg")
    entries = list(list_inputs(str(listing)))
    assert [e.id for e in entries] == ["photos/b.jpg", "photos/gone.jpg", "photos/a.jpg"]
    assert entries[0].read() == b"photos/b.jpg"
    with pytest.raises(FileNotFoundError):
        entries[1].read()


@pytest.mark.parametrize("column", ["uri", "path", "file", "filename"])
def test_csv_list_with_ids(tmp_path: Path, column: str) -> None:
    touch(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "l.csv").write_text(f"\ufeffid,{column}\n007,a.jpg\n,b.jpg\n", encoding="utf-8")
    entries = list(list_inputs(str(tmp_path / "l.csv")))
    assert [e.id for e in entries] == ["007", "b.jpg"]
    assert [e.read() for e in entries] == [b"a.jpg", b"b.jpg"]


def test_parquet_list(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg")
    table = pa.table({"path": ["a.jpg", (tmp_path / "a.jpg").as_uri()], "id": [5, 6], "n": [0, 1]})
    pq.write_table(table, tmp_path / "l.parquet")
    entries = list(list_inputs(str(tmp_path / "l.parquet")))
    assert [e.id for e in entries] == ["5", "6"]
    assert [e.read() for e in entries] == [b"a.jpg"] * 2


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("l.csv", "url,n\na,1\n", "column uri, path, file, filename"),
        ("l.csv", "path,id\n,1\n", "row 1"),
        ("l.txt", "a.jpg\nftp://host/a.jpg\n", "supported store, got .* in row 2"),
        ("l.json", "{}", r"\*.tar"),
        ("l.tar", "no tar at all", "uncompressed tar"),
    ],
)
def test_unusable_lists_say_why(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        ids(tmp_path / name)


def test_missing_input_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such"):
        ids(tmp_path / "nowhere")


def test_one_image(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.jpg")
    assert ids(tmp_path / "a.jpg") == ["a.jpg"]


def test_tar_members_are_read_where_they_lie(tmp_path: Path) -> None:
    long = "d/" * 80 + "long.png"
    make_tar(tmp_path / "s.tar", {"1.jpg": b"one", "1.json": b"{}", "0.jpg": b"", long: b"x" * 999})
    entries = list(list_inputs(str(tmp_path / "s.tar")))
    assert [e.id for e in entries] == ["s.tar::1.jpg", "s.tar::0.jpg", f"s.tar::{long}"]
    assert [e.read() for e in entries] == [b"one", b"", b"x" * 999]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s.tar"]


def test_tars_in_a_folder_and_in_a_range(tmp_path: Path) -> None:
    for i in (2, 0, 1):
        make_tar(tmp_path / f"s-{i:03d}.tar", {"a.jpg": b"%d" % i})
    expected = [f"s-{i:03d}.tar::a.jpg" for i in range(3)]
    assert ids(tmp_path) == expected
    assert ids(tmp_path / "s-{001..002}.tar") == expected[1:]
    assert ids(tmp_path / "s-*.tar") == expected
    with pytest.raises(ValueError, match=r"s-003\.tar"):
        ids(tmp_path / "s-{001..003}.tar")


def test_ranges_and_globs_together(tmp_path: Path) -> None:
    touch(tmp_path, "d1/a.jpg", "d2/b.jpg", "d3/c.jpg")
    assert ids(tmp_path / "d{1..2}/*.jpg") == ["d1/a.jpg", "d2/b.jpg"]
    assert ids(tmp_path / "d{2..4}/b.jpg") == ["d2/b.jpg", "d3/b.jpg", "d4/b.jpg"]


def test_images_beside_tars_are_ambiguous(tmp_path: Path) -> None:
    make_tar(tmp_path / "s.tar", {"a.jpg": b""})
    touch(tmp_path, "a.jpg")
    with pytest.raises(ValueError, match="got both"):
        ids(tmp_path)


@pytest.mark.parametrize("damage", ["cut in a member", "damaged header", "gzip"])
def test_damaged_tars_are_refused_whole(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "s.tar"
    make_tar(path, {"a.jpg": b"a" * 600, "b.jpg": b"b" * 600})
    data = bytearray(path.read_bytes())
    if damage == "cut in a member":
        data = data[: 512 + 1024 + 512 + 300]
    elif damage == "damaged header":
        data[512 + 1024 + 10] ^= 0xFF
    else:
        data[:3] = b"\x1f\x8b\x08"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="whole, uncompressed tar"):
        ids(path)


def test_tar_that_shrank_since_is_noticed(tmp_path: Path) -> None:
    make_tar(tmp_path / "s.tar", {"a.jpg": b"a" * 600})
    (entry,) = list_inputs(str(tmp_path / "s.tar"))
    (tmp_path / "s.tar").write_bytes(b"short")
    with pytest.raises(OSError, match="expected 600 bytes"):
        entry.read()


def test_ranges() -> None:
    assert expand_ranges("a{08..10}b") == ["a08b", "a09b", "a10b"]
    assert expand_ranges("{0..1}-{5..6}") == ["0-5", "0-6", "1-5", "1-6"]
    with pytest.raises(ValueError, match="goes up"):
        expand_ranges("{3..1}")


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9 1%.jpg")
    path.write_bytes(b"photo")
    (entry,) = list_inputs(str(tmp_path))
    assert entry.id == "caf\\xe9 1%.jpg"
    entry.uri.encode("utf-8")
    assert entry.read() == b"photo"
    (tmp_path / "l.txt").write_bytes(b"caf\xe9 1%.jpg\n")
    assert list(list_inputs(str(tmp_path / "l.txt"))) == [entry]


@pytest.mark.parametrize("name", ["a b#1%20.jpg", "ü.jpg", "\udcff.jpg"])
def test_uri_and_path_are_inverse(tmp_path: Path, name: str) -> None:
    assert uri_path(path_uri(tmp_path / name)) == tmp_path / name
    assert uri_path((tmp_path / name).as_uri()) == tmp_path / name


def test_entries_compare_by_value() -> None:
    assert Entry("a", "/a") == Entry("a", "/a") != Entry("a", "/a", 0, 1)


def test_listing_is_deterministic(tmp_path: Path, photos: Callable[..., list[Path]]) -> None:
    photos(tmp_path / "b", 3)
    photos(tmp_path / "a", 3)
    assert ids(tmp_path) == ids(tmp_path) == sorted(ids(tmp_path))


def test_a_list_of_windows_starts_with_a_mark(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbfa.jpg\r\nb.jpg\r\n")
    assert ids(tmp_path / "list.txt") == ["a.jpg", "b.jpg"]


def test_a_folder_that_cannot_be_read_is_not_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "open/a.jpg", "shut/b.jpg")
    scandir = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("shut"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError, match="shut"):
        ids(tmp_path)
