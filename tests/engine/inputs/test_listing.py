"""What INPUT can be."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from combicam.engine.inputs.entry import Entry, path_uri, uri_path
from combicam.engine.inputs.listing import expand_ranges, list_inputs
from combicam.engine.inputs.selection import SelectionConfig, Tally, ignored_words


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
        ("l.jsonl", '{"path": "a.jpg"}\n{"path": \n', "JSON object in line 2"),
        ("l.jsonl", "[1]\n", "JSON object in line 1 of .*, got: list"),
        ("l.tsv", "path,id\na.jpg,1\n", "column uri, path, file, filename"),
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


JPEG = b"\xff\xd8\xff\xe0 and so on"


def listed(source: Path, **selection: Any) -> tuple[list[str], dict[str, int]]:
    tally = Tally()
    entries = list(list_inputs(str(source), SelectionConfig(**selection), tally))
    return [entry.id for entry in entries], dict(tally.ignored)


def test_what_is_left_out_is_counted_by_suffix(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "a.jpg",
        "IMG.HEIC",
        "b.jxl",
        "c.dng",
        "x/b.txt",
        "x/c.TXT",
        "v1.0/d.mp4",
        "LICENSE",
    )
    (tmp_path / "photo").write_bytes(JPEG)
    (tmp_path / "x" / "0").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe")
    found, ignored = listed(tmp_path)
    assert found == ["IMG.HEIC", "a.jpg", "b.jxl", "c.dng", "photo", "x/0"]
    assert ignored == {".txt": 2, ".mp4": 1, "no suffix": 3}
    assert ignored_words(ignored) == "6 (3 no suffix, 2 .txt, 1 .mp4)"
    assert listed(tmp_path / "*") == (
        ["IMG.HEIC", "a.jpg", "b.jxl", "c.dng", "photo"],
        {"no suffix": 3},
    )
    assert ids(tmp_path / "photo") == ["photo"]


def test_files_of_operating_systems_are_no_photos(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "._a.jpg", ".DS_Store", "Thumbs.db", "__MACOSX/x/a.jpg", "x/._b.png")
    assert listed(tmp_path) == (["a.jpg"], {})
    assert listed(tmp_path / "**" / "*.jpg") == (["a.jpg"], {})


def test_links_to_folders_are_followed_but_not_round(tmp_path: Path) -> None:
    touch(tmp_path, "elsewhere/cats/1.jpg", "elsewhere/dogs/deep/2.jpg", "in/3.jpg")
    for name in ("cats", "dogs"):
        (tmp_path / "in" / name).symlink_to(tmp_path / "elsewhere" / name)
    (tmp_path / "elsewhere/dogs/deep/up").symlink_to(tmp_path / "elsewhere" / "dogs")
    (tmp_path / "in" / "self").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "itself").symlink_to(tmp_path / "in" / "itself")
    expected = ["3.jpg", "cats/1.jpg", "dogs/deep/2.jpg"]
    assert listed(tmp_path / "in") == (expected, {"no suffix": 1})
    assert ids(tmp_path / "in" / "**" / "*.jpg") == expected
    assert ids(tmp_path / "in" / "dogs" / "**") == ["deep/2.jpg"]
    assert ids(tmp_path / "in" / "*" / "**" / "*.jpg") == expected[1:]
    assert ids(tmp_path / "in" / "c*" / "**" / "*.jpg") == ["cats/1.jpg"]


def test_globs_and_suffixes_choose(tmp_path: Path) -> None:
    touch(tmp_path, "train/a.jpg", "train/a_thumb.jpg", "test/b.PNG", "c.v2.png", "c.seg.png")
    everything = ["c.seg.png", "c.v2.png", "test/b.PNG", "train/a.jpg", "train/a_thumb.jpg"]
    assert listed(tmp_path)[0] == everything
    assert listed(tmp_path, include="train/*")[0] == everything[3:]
    assert listed(tmp_path, include=("test/*", "a.jpg"))[0] == everything[2:4]
    assert listed(tmp_path, exclude="*_thumb.jpg") == (everything[:4], {"excluded": 1})
    assert listed(tmp_path, ext="png")[0] == everything[:3]
    assert listed(tmp_path, ext=".JPG,png", exclude=("c.*", "test/*"))[0] == everything[3:]
    (tmp_path / "l.txt").write_text("train/a.jpg\ntest/b.PNG\n")
    assert listed(tmp_path / "l.txt", include="*/train/*") == (["train/a.jpg"], {"excluded": 1})
    with pytest.raises(ValueError, match="expected ext without an empty word"):
        SelectionConfig(ext=("jpg,",))


def test_rows_without_a_path_are_missing(tmp_path: Path) -> None:
    table = pa.table({"path": ["a.jpg", None, ""], "id": ["x", "y", None]})
    pq.write_table(table, tmp_path / "l.parquet")
    (tmp_path / "l.csv").write_text("path,id\na.jpg,x\n,y\n,\n")
    (tmp_path / "l.jsonl").write_text(
        '{"path": "a.jpg", "id": "x"}\n{"path": null, "id": "y"}\n\n{"id": ""}\n'
    )
    for name in ("l.parquet", "l.csv", "l.jsonl"):
        entries = list(list_inputs(str(tmp_path / name)))
        assert [entry.id for entry in entries] == ["x", "y", "row 3"]
        assert [entry.uri for entry in entries] == [str(tmp_path / "a.jpg"), "", ""]
        with pytest.raises(OSError, match="expected a path, got none"):
            entries[1].read()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_lists_of_any_encoding_and_separator(tmp_path: Path, encoding: str) -> None:
    touch(tmp_path, "ü.jpg")
    mark = "\ufeff" if encoding in ("utf-16-le", "utf-16-be") else ""
    texts = {
        "l.csv": "path,lat,lng,note\nü.jpg,1.5,2,x\n",
        "l.tsv": "file_name\tlatitude\tlongitude\r\nü.jpg\t1.5\t2\r\n",
        "l.jsonl": '{"image": "ü.jpg", "lat": 1.5, "lon": 2}\r\n',
        "l.txt": "ü.jpg\r\n\r\n",
    }
    for name, text in texts.items():
        (tmp_path / name).write_bytes((mark + text).encode(encoding))
        (entry,) = list_inputs(str(tmp_path / name))
        assert entry.id == "ü.jpg" and entry.read() == "ü.jpg".encode()
        place = (1.5, 2) if name != "l.txt" else (None, None)
        assert (entry.true_lat, entry.true_lon) == place


def test_paths_as_bytes(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"photo")
    pq.write_table(
        pa.table({"path": pa.array([b"caf\xe9.jpg"], pa.binary())}), tmp_path / "l.parquet"
    )
    (entry,) = list_inputs(str(tmp_path / "l.parquet"))
    assert entry.id == "caf\\xe9.jpg" and entry.read() == b"photo"
