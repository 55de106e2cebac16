"""What is in a report's file: its rows, pictures and maps, and nothing that users could inject."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import shutil
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import combicam
from combicam.cli import main
from combicam.engine.report.cards import Cards
from combicam.engine.report.packed_maps import pack_maps
from combicam.engine.report.report import write_report
from combicam.engine.report.selection import _drawn, choose_rows
from combicam.engine.report.thumbnails import run_facts
from combicam.engine.run.config import RunConfig
from combicam.engine.run.open_run import open_run
from combicam.engine.runner import run_images
from combicam.engine.shards.map_format import MapFormat
from combicam.export.preprocess import Preprocess

TRAPS = ("<img src=x onerror=window.hacked=1>.jpg", "</script><script>window.hacked=1;<!--.jpg")


class Elements(HTMLParser):
    """Elements, and what is inside of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.inside: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self.inside.append("")

    def handle_data(self, data: str) -> None:
        if self.found:
            self.inside[-1] += data

    def handle_endtag(self, tag: str) -> None:
        self.found.append(("", {}))
        self.inside.append("")

    def of(self, tag: str) -> list[tuple[dict[str, str | None], str]]:
        both = zip(self.found, self.inside, strict=True)
        return [(attributes, text) for (name, attributes), text in both if name == tag]


def data_of(path: Path) -> dict[str, Any]:
    scripts = Elements(path.read_text(encoding="utf-8")).of("script")
    (text,) = [text for attributes, text in scripts if attributes.get("id") == "data"]
    values: dict[str, Any] = json.loads(text)
    return values


def unpacked(card: dict[str, Any]) -> list[np.ndarray[Any, Any]]:
    """[K,h,w] of the heatmap and of every layer, by the format's description."""
    data = np.frombuffer(zlib.decompress(base64.b64decode(card["maps"]["data"])), np.uint8)
    parts, start = [], 0
    for h, w in card["maps"]["grids"]:
        count = len(card["targets"]) * h * w
        steps = data[start : start + count].reshape(-1, h, w)
        parts.append(np.cumsum(steps, -1, dtype=np.uint8))
        start += count
    assert start == len(data)
    return parts


@pytest.fixture(scope="module")
def written(layers_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(layers_run, tmp_path_factory.mktemp("page") / "report.html")


@pytest.fixture
def copied(layers_run: Path, tmp_path: Path) -> Path:
    """The run, to be changed; its photos stay where they are."""
    return Path(shutil.copytree(layers_run, tmp_path / "run"))


def test_every_row_is_a_card(written: Path, layers_run: Path) -> None:
    data = data_of(written)
    rows = open_run(layers_run).table().to_pylist()
    assert [card["id"] for card in data["cards"]] == [row["id"] for row in rows]
    facts = data["facts"]
    assert facts["statuses"] == {"ok": 12, "decode_error": 1} and facts["state"] == "finished"
    assert (facts["images"], facts["committed"], facts["matching"]) == (13, 13, 13)
    assert sum(facts["scores"]["counts"]) == sum(a["count"] for a in facts["answers"]) == 12
    assert sum(place[2] for place in facts["places"]["points"]) == 12
    assert facts["speed"]["stages"].keys() >= {"decode", "explain"}
    for card, row in zip(data["cards"], rows, strict=True):
        if row["status"] != "ok":
            assert card["status"] == "decode_error" and "decode:" in card["error"]
            assert "photo" not in card and "maps" not in card
            continue
        assert card["targets"] == row["targets"] and card["class_name"] == row["class_name"]
        assert card["scores"] == pytest.approx(row["scores"], rel=1e-5)
        assert card["ranges"][1] == pytest.approx([row["low"][1], row["high"][1]], rel=1e-5)
        assert (card["lat"], card["lon"]) == pytest.approx((row["lat"], row["lon"]))


def test_maps_are_those_of_the_run(written: Path, layers_run: Path) -> None:
    run = open_run(layers_run)
    for card in data_of(written)["cards"]:
        if card["status"] != "ok":
            continue
        shard, row = run.find(card["id"])
        heatmap, *layers = unpacked(card)
        assert np.array_equal(heatmap, shard.heatmaps[row])
        highs = np.reshape(card["maps"]["highs"], (len(layers), 2, 1, 1))
        for part, high, expected in zip(layers, highs, shard.layer_maps(row).values(), strict=True):
            assert np.allclose(part / 255 * high, expected, rtol=1e-4, atol=1e-7)


def test_photos_and_the_part_that_was_seen(written: Path, layers_run: Path) -> None:
    for card in data_of(written)["cards"]:
        if card["status"] != "ok":
            continue
        path = layers_run.parent / "in" / card["id"]
        with Image.open(path) as image:
            original = np.asarray(image, np.int16)
        assert card["size"] == [original.shape[1], original.shape[0]]
        with Image.open(io.BytesIO(base64.b64decode(card["photo"].split(",")[1]))) as image:
            assert np.abs(np.asarray(image, np.int16) - original).mean() < 6
        # 32 px are the middle of 35, whichever side is the shorter one.
        width, height = card["size"]
        side = 32 / 35 * min(card["size"])
        left, top, across, down = card["box"]
        assert across * width == pytest.approx(side, abs=1)
        assert down * height == pytest.approx(side, abs=1)
        assert left + across / 2 == pytest.approx(0.5, abs=0.03)
        assert top + down / 2 == pytest.approx(0.5, abs=0.03)


def test_names_are_never_markup(written: Path) -> None:
    text = written.read_text(encoding="utf-8")
    assert {card["id"] for card in data_of(written)["cards"]} >= set(TRAPS)
    page = Elements(text)
    assert len(page.of("script")) == text.count("</script") == 3 and not page.of("img")
    assert "<!--" not in text
    assert not [a for _, a in page.found for name in a if name.startswith("on")]


def test_title_is_escaped(layers_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "<script>window.hacked=1<"
    shutil.copytree(layers_run, run)
    page = Elements(write_report(run).read_text(encoding="utf-8"))
    assert len(page.of("script")) == 3
    assert page.of("title")[0][1] == "<script>window.hacked=1< · combicam"


def test_only_its_own_script_and_style_may_run(written: Path) -> None:
    page = Elements(written.read_text(encoding="utf-8"))
    (policy,) = [a["content"] for a, _ in page.of("meta") if "http-equiv" in a]
    rules = dict(rule.split(" ", 1) for rule in str(policy).split("; "))
    assert rules.pop("default-src") == "'none'" and rules.pop("img-src") == "data:"
    for name, text in (
        ("script-src", page.of("script")[-1][1]),
        ("style-src", page.of("style")[0][1]),
    ):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert rules.pop(name) == f"'sha256-{digest}'"
    assert set(rules.values()) == {"'none'"}
    outside = {"src", "href", "srcset", "action", "data"}
    assert not [a for _, a in page.found if outside & a.keys()]
    # The namespace of SVG is a name, not an address.
    addresses = re.findall(r"https?://[^'\"\s]*", written.read_text(encoding="utf-8"))
    assert set(addresses) <= {"http://www.w3.org/2000/svg"}
    assert str(written.parent.parent) not in written.read_text(encoding="utf-8")


def test_filter_and_order(layers_run: Path, tmp_path: Path) -> None:
    path = write_report(
        layers_run, tmp_path / "r.html", sample=4, where="score > 0", sort="score desc, id"
    )
    data = data_of(path)
    rows = open_run(layers_run).table(["id", "scores"]).to_pylist()
    explained = [row for row in rows if row["scores"]]
    best = sorted(explained, key=lambda row: (-row["scores"][0], row["id"]))[:4]
    assert [card["id"] for card in data["cards"]] == [row["id"] for row in best]
    assert data["facts"]["matching"] == 12 and data["facts"]["filtered"]
    empty = data_of(write_report(layers_run, tmp_path / "e.html", where="width > 10000"))
    assert empty["cards"] == [] and empty["facts"]["matching"] == 0


def test_a_draw_stays_as_a_run_grows() -> None:
    small, large = (_drawn(np.arange(n), 100).tolist() for n in (1000, 3000))
    assert len(small) == len(set(small)) == 100 and small == sorted(small)
    assert {row for row in large if row < 1000} < set(small)
    assert 20 < len(set(small) & set(large)) < 50
    # Even over the rows, and over rows of every remainder: classes often come in turn.
    drawn = _drawn(np.arange(100_000), 20_000)
    for counts in (np.histogram(drawn, 20)[0], np.bincount(drawn % 36)):
        expected = len(drawn) / len(counts)
        assert np.abs(counts - expected).max() < 6 * np.sqrt(expected)


def test_failed_rows_have_a_place_in_the_sample(layers_run: Path) -> None:
    run = open_run(layers_run)
    statuses = run.table(["status"]).column(0).to_pylist()
    chosen = choose_rows(run, 8, None, None)
    assert len(chosen.rows) == 8
    assert [statuses[row] for row in chosen.rows].count("decode_error") == 1


def test_maps_of_other_rows_are_not_read(copied: Path) -> None:
    run = open_run(copied)
    victim = copied / "shards" / "00001.parquet"
    metadata = pq.read_metadata(victim)
    names = metadata.schema.to_arrow_schema().names
    chunk = metadata.row_group(0).column(names.index("heatmap"))
    content = bytearray(victim.read_bytes())
    start = chunk.data_page_offset
    content[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    victim.write_bytes(content)
    rows = run.table(["id"]).column(0).to_pylist()
    first, damaged = f"id = '{rows[0]}'", f"id = '{rows[6]}'"
    assert len(data_of(write_report(copied, where=first))["cards"]) == 1
    with pytest.raises((OSError, pa.ArrowInvalid)):
        write_report(copied, where=damaged)


def test_photos_that_moved_or_changed(layers_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "all"
    shutil.copytree(layers_run.parent, folder)
    run = folder / "run"
    for path in ("manifest.parquet", *(f"shards/{i:05d}.parquet" for i in range(3))):
        table = pq.read_table(run / path)
        moved = [
            uri.replace(str(layers_run.parent), str(folder)) for uri in table["uri"].to_pylist()
        ]
        place = table.schema.get_field_index("uri")
        table = table.set_column(place, table.schema.field("uri"), pa.array(moved))
        pq.write_table(table, run / path, row_group_size=6)
    (folder / "in" / "p00.jpg").unlink()
    Image.new("RGB", (30, 30)).save(folder / "in" / "p01.jpg")
    (folder / "in" / "p02.jpg").write_bytes(b"no photo")
    cards = {card["id"]: card for card in data_of(write_report(run))["cards"]}
    assert "no longer where" in cards["p00.jpg"]["gone"] and "photo" not in cards["p00.jpg"]
    assert "was replaced since the run" in cards["p01.jpg"]["gone"] and "photo" in cards["p01.jpg"]
    assert "has changed since the run: decode:" in cards["p02.jpg"]["gone"]
    assert "gone" not in cards["p03.jpg"] and cards["p00.jpg"]["maps"]["data"]
    # Cards that were made are kept: the next report of a run that goes on reads no photo twice.
    made, opened = Cards(), open_run(run)
    chosen, facts = choose_rows(opened, 200, None, None), run_facts(opened)
    first = made.of(opened, facts, chosen.rows)
    shutil.rmtree(folder / "in")
    assert made.of(opened, facts, chosen.rows) == first
    assert all("gone" in c for c in Cards().of(opened, facts, chosen.rows) if c["status"] == "ok")


def test_true_places_and_densities(layers_run: Path, tmp_path: Path) -> None:
    path = write_report(
        layers_run, tmp_path / "r.html", where="error_km is not null", sort="error_km desc"
    )
    data = data_of(path)
    rows = {row["id"]: row for row in open_run(layers_run).table().to_pylist()}
    accuracy = data["facts"]["accuracy"]
    errors = [card["error_km"] for card in data["cards"]]
    assert accuracy["rows"] == len(errors) == 6 and errors == sorted(errors, reverse=True)
    assert accuracy["within"] == [[r, sum(e <= r for e in errors)] for r in (1, 25, 200, 750, 2500)]
    assert accuracy["median_km"] == pytest.approx(np.median(errors), rel=1e-5)
    for card in data["cards"]:
        row = rows[card["id"]]
        assert (card["true_lat"], card["true_lon"]) == (-18.0, -179.0)
        assert card["more"]["density_25km"] == pytest.approx(row["density_25km"], rel=1e-5)
        assert [p["class"] for p in card["places"]] == [p["class"] for p in row["places"]]
        assert card["places"][0]["lat"] == card["lat"]
        names = data["facts"]["names"]
        assert names[str(card["places"][0]["class"])] == card["class_name"]
        assert all(names[str(p["class"])] for p in card["places"]) and len(card["places"]) > 1


@pytest.mark.parametrize(("targets", "side"), [(1, 160), (2, 160), (10, 80), (40, 40)])
def test_many_targets_take_no_more_room(targets: int, side: int) -> None:
    heat = np.random.default_rng(0).integers(0, 256, targets * 160 * 160, np.uint8)
    packed = pack_maps({"heatmap": heat.tobytes()}, MapFormat(targets, (160, 160)))
    assert packed["grids"] == [[side, side]]
    assert len(packed["data"]) < 90_000


def test_photos_of_several_sizes(tmp_path: Path, photos: Any, fake: Any) -> None:
    photos(tmp_path / "in", 3, (60, 40))
    photos(tmp_path / "in" / "tall", 2, (40, 60))
    explainer = fake()
    explainer.preprocess = Preprocess((200, 200), resize="short-side", side_step=100)
    config = RunConfig(str(tmp_path / "in"), tmp_path / "run", "fake", progress=False)  # type: ignore[arg-type]
    run_images(config, explainer)
    cards = data_of(write_report(tmp_path / "run"))["cards"]
    # Heatmaps of 200 x 300 become at most 160 long.
    assert [card["maps"]["grids"] for card in cards] == [[[107, 160]]] * 3 + [[[160, 107]]] * 2
    assert all(card["box"] == [0, 0, 1, 1] for card in cards)
    run = open_run(tmp_path / "run")
    shard, row = run.find(cards[4]["id"])
    small = Image.fromarray(shard.heatmaps[row][0]).resize((107, 160), Image.Resampling.BILINEAR)
    difference = np.abs(unpacked(cards[4])[0][0].astype(np.int16) - np.asarray(small, np.int16))
    assert difference.max() <= 2


def test_watching_a_run(copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    beat = copied / "progress.json"
    finished = json.loads(beat.read_text())
    last = copied / "shards" / "00002.parquet"
    last.rename(copied / "shards" / "late")
    beat.write_text(json.dumps(finished | {"state": "running", "updated": 4e9}))
    pages: list[dict[str, Any]] = []

    def sleep(seconds: float) -> None:
        assert seconds == 7
        pages.append(data_of(copied / "report.html"))
        (copied / "shards" / "late").rename(last)
        beat.write_text(json.dumps(finished))

    monkeypatch.setattr("combicam.commands.report.time.sleep", sleep)
    main(["report", str(copied), "--watch", "7"])
    pages.append(data_of(copied / "report.html"))
    assert [page["live"] for page in pages] == [7, None]
    assert [page["facts"]["state"] for page in pages] == ["running", "finished"]
    assert [page["facts"]["committed"] for page in pages] == [12, 13]
    assert capsys.readouterr().out.count("report.html") == 2
    assert not list(copied.glob("*.tmp")) and not list(copied.glob(".*.tmp"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--where", "scor > 1"], "where: expected a condition over the columns id, status"),
        (["--sort", "heat"], "sort: expected an order over the columns id, status"),
        (["--sort", "score down"], "got 'score down' .syntax error"),
        (["--sample", "0"], "expected sample >= 1, got 0"),
        (["--colormap", "rainbow"], "expected colormap in .*got 'rainbow'"),
        (["-o", "page.txt"], r"expected an output that ends in \.html, got page\.txt"),
        (["-o", "/nowhere/page.html"], "expected a folder at /nowhere, got none"),
    ],
)
def test_mistakes(layers_run: Path, options: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        main(["report", str(layers_run), *options])
    assert not (layers_run / "report.html").exists()


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(combicam.RunError, match="committed shards"):
        combicam.write_report(tmp_path)
