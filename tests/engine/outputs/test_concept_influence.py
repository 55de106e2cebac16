"""Concept influence, by hand and over a run."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from combicam.cli import main
from combicam.commands.influence import Config
from combicam.engine.outputs import run_concept_influence as module
from combicam.engine.outputs.concept_influence import concept_influence, resized_labels, top_weights
from combicam.engine.outputs.run_concept_influence import run_influence
from combicam.engine.run.config import RunConfig
from combicam.engine.run.open_run import open_run
from combicam.engine.runner import run_images
from combicam.export.preprocess import Preprocess

HEATMAP = np.array([[9, 8, 1, 0], [7, 1, 0, 0]], float)
MASK = np.array([[3, 3, 5, 5], [5, 5, 5, 5]])


def test_by_hand() -> None:
    """Two of the three best pixels lie on 3, which is a quarter of the image."""
    found = concept_influence([HEATMAP], [MASK], 3)
    np.testing.assert_allclose(found, [[(2 / 3) / (2 / 8), (1 / 3) / (6 / 8)]])
    asked = concept_influence([HEATMAP, HEATMAP], [MASK, np.full((2, 4), 7)], 3, [7, 3, 0])
    np.testing.assert_allclose(asked, [[np.nan, 8 / 3, np.nan], [1, np.nan, np.nan]])
    np.testing.assert_allclose(concept_influence([HEATMAP], [MASK], 8), [[1, 1]])


def test_ties_are_the_mean_of_all_ways_to_choose() -> None:
    heatmap = np.array([[5, 2, 2], [2, 2, 1]])
    mask = np.array([[0, 1, 0], [1, 2, 2]])
    ties = [(0, 1), (0, 2), (1, 0), (1, 1)]
    means = np.zeros(3)
    for chosen in itertools.combinations(ties, 2):
        picked = [mask[0, 0], *(mask[at] for at in chosen)]
        means += [picked.count(c) / 3 / (2 / 6) / 6 for c in range(3)]
    np.testing.assert_allclose(concept_influence([heatmap], [mask], 3)[0], means)


def test_what_influence_does_not_depend_on() -> None:
    random = np.random.default_rng(0)
    heatmaps, masks = random.random((4, 21, 17)), random.integers(0, 6, (4, 21, 17))
    found = concept_influence(heatmaps, masks, 50)
    np.testing.assert_allclose(concept_influence(heatmaps**3 * 7, masks, 50), found)
    np.testing.assert_allclose(
        concept_influence(heatmaps[:, ::-1], masks[:, ::-1], 50), found
    )  # a mirrored image
    area = np.stack([(masks == c).mean((1, 2)) for c in range(6)], 1)
    np.testing.assert_allclose((found * area).sum(1), 1)  # the best pixels lie somewhere
    assert top_weights(heatmaps[0], 50).sum() == 50


def test_a_constant_heatmap_says_nothing() -> None:
    assert np.isnan(concept_influence([np.zeros((2, 4))], [MASK], 3)).all()
    none = np.empty((0, 2, 4), int)
    assert concept_influence(none, none, 3, [1, 2]).shape == (0, 2)


def test_labels_are_looked_up_at_the_centres() -> None:
    labels = np.arange(12).reshape(3, 4)
    assert np.array_equal(resized_labels(labels, (3, 4)), labels)
    assert np.array_equal(resized_labels(labels, (6, 8)), labels.repeat(2, 0).repeat(2, 1))
    assert resized_labels(labels, (1, 2)).tolist() == [[5, 7]]
    assert resized_labels(labels, (3, 2), (0.5, 0, 1, 1)).tolist() == [[2, 3], [6, 7], [10, 11]]
    bigger = np.kron(MASK, np.ones((3, 3), int))
    np.testing.assert_array_equal(
        concept_influence([HEATMAP], [bigger], 3), concept_influence([HEATMAP], [MASK], 3)
    )


@pytest.mark.parametrize(
    "heatmaps, masks, k, message",
    [
        ([HEATMAP], [MASK], 9, r"k in 1\.\.8, the pixels of a heatmap of 2x4, got 9"),
        ([HEATMAP], [MASK], 0, r"k in 1\.\.8"),
        ([HEATMAP, HEATMAP], [MASK], 3, r"got \(2, 2, 4\) and \(1, 2, 4\)"),
        (HEATMAP, MASK, 3, r"expected heatmaps \[N,H,W\]"),
        ([HEATMAP * np.nan], [MASK], 3, "finite"),
        ([HEATMAP], [MASK - 4], 3, "labels as integers >= 0, got int64 from -1"),
        ([HEATMAP], [MASK * 1.0], 3, "got float64"),
    ],
)
def test_what_is_refused(heatmaps: Any, masks: Any, k: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        concept_influence(heatmaps, masks, k)


@pytest.fixture
def explained(tmp_path: Path, photos: Any, fake: Any) -> Path:
    photos(tmp_path / "in", 6)
    Image.new("RGB", (9, 9), (50, 60, 70)).save(tmp_path / "in" / "flat.png")
    config = RunConfig(str(tmp_path / "in"), tmp_path / "run", "fake", progress=False)  # type: ignore[arg-type]
    run_images(config, fake())
    (tmp_path / "masks").mkdir()
    for i in range(5):
        labels = np.zeros((30, 40), np.uint8)
        labels[:, 10 * i :] = 200  # none in the last
        Image.fromarray(labels).save(tmp_path / "masks" / (f"p00{i}.png" if i else "p000.jpg.png"))
    (tmp_path / "names.csv").write_text("label,name\n200,right\n0,left\n9,never\n")
    return tmp_path


def test_over_a_run(explained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(explained / name) for name in ("run", "masks")]
    (explained / "groups.csv").write_text(
        "id,country\n" + "".join(f"p00{i}.jpg,{'AB'[i % 2]}\n" for i in range(5))
    )
    names, groups, output = (str(explained / n) for n in ("names.csv", "groups.csv", "t.parquet"))
    options = ["--names", names, "-k", "100", "--groups", groups, "--by", "country", "-o", output]
    main(["influence", *arguments, *options])
    out = capsys.readouterr().out
    assert "A  right" in out and "without a mask     1" in out and "constant heatmaps  1" in out
    table = pq.read_table(explained / "t.parquet").to_pylist()
    assert [(r["group"], r["concept"], r["images"]) for r in table] == [
        ("A", "right", 2), ("A", "left", 2), ("B", "right", 2), ("B", "left", 2),
    ]  # fmt: skip
    shard = open_run(explained / "run").shard(0)
    values = []
    for i in (0, 2, 4):
        row = shard.table.column("id").to_pylist().index(f"p00{i}.jpg")
        labels = resized_labels((np.arange(40) >= 10 * i)[None].repeat(30, 0) * 1, (24, 32))
        values.append(concept_influence(shard.heatmap(row), [labels], 100, [1])[0, 0])
    assert table[0]["influence"] == pytest.approx(np.mean(values[:2]))
    assert np.isnan(values[2])  # absent: not counted
    alone = run_influence(*arguments, explained / "names.csv", 100)
    assert set(alone.rows.column("group").to_pylist()) == {"all"} and alone.images == 5


def test_masks_lie_on_the_part_that_the_network_saw(
    explained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The centre of a photo of 40x30 at 24x24: what is cut away is no part of the coverage."""
    seen = Preprocess((24, 24), resize="crop", crop_pct=1.0)
    monkeypatch.setattr(module.OpenRun, "preprocess", seen)
    table = run_influence(
        *(str(explained / name) for name in ("run", "masks", "names.csv")), k=100
    ).rows.to_pylist()
    # Columns 5 to 35 of 40 are seen; the masks' edges are at 0, 10, 20, 30 and 40.
    right = next(row for row in table if row["concept"] == "right")
    assert right["images"] == 4
    assert right["coverage"] == pytest.approx((1 + 25 / 30 + 15 / 30 + 5 / 30) / 4, abs=0.02)


@pytest.mark.parametrize(
    "names, by, message",
    [
        ("label,title\n1,a\n", None, "columns label and name, got"),
        ("label,name\nsky,1\n", None, "expected labels in"),
        ("label,name\n-1,a\n", None, "labels >= 0"),
        ("label,name\n1,a\n1,b\n", None, "each once and with a name, got 1 for 'b' again"),
        ("label,name\n1\n", None, "with a name, got 1 for None"),
        ("label,name\n", None, "got no row"),
        ("label,name\n1,\udce4\n", None, r"influence: expected \S+names.csv as CSV in UTF-8"),
        ("label,name\n9,never\n", None, r"labels that \S+names.csv names, got none in .* 5 images"),
        ("label,name\n1,a\n", "country", "columns id and country, got"),
    ],
)
def test_tables_that_do_not_fit(names: str, by: str | None, message: str, explained: Path) -> None:
    (explained / "names.csv").write_text(names, errors="surrogateescape")
    with pytest.raises(ValueError, match=message):
        run_influence(explained / "run", explained / "masks", explained / "names.csv", 100, by)


def test_masks_that_are_none(explained: Path) -> None:
    folder = explained / "masks"
    arguments = (explained / "run", folder, explained / "names.csv", 100)
    Image.new("RGB", (4, 4)).save(folder / "p001.png")
    with pytest.raises(ValueError, match=r"one channel, got \(4, 4, 3\) in .*p001.png"):
        run_influence(*arguments)
    (folder / "p001.png").write_text("no PNG")
    with pytest.raises(ValueError, match=r"expected a PNG, got .*p001.png"):
        run_influence(*arguments)
    with pytest.raises(ValueError, match="got none of 6 images, 1 more have constant heatmaps"):
        run_influence(explained / "run", explained / "in2", explained / "names.csv", 100)
    with pytest.raises(ValueError, match=r"output as .csv or .parquet, got t.xlsx"):
        Config(explained, folder, explained / "names.csv", output=Path("t.xlsx"))


def test_groups_are_columns_of_the_run(explained: Path) -> None:
    arguments = (explained / "run", explained / "masks", explained / "names.csv", 100)
    rows = run_influence(*arguments, by="width").rows.to_pylist()
    assert {row["group"] for row in rows} == {"40"}
    (explained / "g.csv").write_text("id,country\np001.jpg,X\np002.jpg,\n")
    with pytest.raises(
        ValueError, match=r"a column of \S+g.csv to group by.*'country'\] with --by"
    ):
        run_influence(*arguments, groups=explained / "g.csv")
    with pytest.raises(FileNotFoundError, match=r"influence: expected a file, got \S+none.csv"):
        run_influence(*arguments, by="country", groups=explained / "none.csv")
    rows = run_influence(*arguments, by="country", groups=explained / "g.csv").rows.to_pylist()
    assert {(r["group"], r["concept"]): r["images"] for r in rows} == {
        ("(none)", "right"): 3, ("(none)", "left"): 3, ("X", "right"): 1, ("X", "left"): 1
    }  # fmt: skip


def test_labels_of_one_name_are_one_concept(explained: Path) -> None:
    """Whatever numbers a concept has, its influence is that of one label on the same pixels."""
    names, masks = explained / "names.csv", explained / "masks"
    arguments = (explained / "run", masks, names, 100)
    names.write_text("label,name\n200,right\n0,left\n")
    one = run_influence(*arguments).rows
    for path in masks.iterdir():
        labels = np.asarray(Image.open(path)).copy()
        labels[::2][labels[::2] == 200] = 7
        Image.fromarray(labels).save(path)
    names.write_text(f"label,name\n7,right\n0,left\n200,right\n{2**40},far\n")
    assert run_influence(*arguments).rows.equals(one)


def test_tables_appear_in_new_folders(explained: Path) -> None:
    words = ["influence", *(str(explained / n) for n in ("run", "masks")), "--names"]
    words += [str(explained / "names.csv"), "-k", "100", "-o"]
    main([*words, str(explained / "new" / "t.csv")])
    assert [p.name for p in (explained / "new").iterdir()] == ["t.csv"]
    assert (explained / "new" / "t.csv").read_text().startswith('"group","concept","images"')
    (explained / "new" / "x.csv").mkdir()
    with pytest.raises(SystemExit, match=r"a file name, got the folder \S+x.csv"):
        main([*words, str(explained / "new" / "x.csv")])
