"""``combicam evaluate`` as a user types it."""

from __future__ import annotations

import json
import shutil
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from combicam import EvaluateConfig, MetricSettings, ModelConfig, cli, open_run
from combicam.engine.evaluation import evaluate as evaluation_module
from combicam.engine.evaluation.evaluate import evaluate
from combicam.engine.evaluation.masks import read_evidence
from combicam.engine.evaluation.methods import check_network, contestants
from combicam.engine.evaluation.metrics import METRICS
from combicam.engine.evaluation.samples import input_samples
from combicam.engine.outputs.run_concept_influence import run_influence
from combicam.errors import DecodeError, RunError
from combicam.export.preprocess import Preprocess

# Small, so that its graphs are traced in no time; it need not know anything.
NETWORK = """
import torch
from torch import nn
from combicam import ClassTable, LoadedModel, Preprocess

def load():
    torch.manual_seed(1)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 5, 2, 2), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )
    module[6].weight.data *= 20
    classes = ClassTable(latitudes=(0, 0, 10, 20), longitudes=(0, 0.1, 10, 20))
    preprocess = Preprocess((40, 48), (0.5,) * 3, (0.2,) * 3, resize="squash")
    return LoadedModel(module.eval(), preprocess, "small", classes)
"""
MODEL = "network_for_evaluation:load"


@pytest.fixture(scope="module")
def planet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Six photos with masks, one of them damaged, and a run over them."""
    folder = tmp_path_factory.mktemp("planet")
    (folder / "network_for_evaluation.py").write_text(NETWORK)
    sys.path.insert(0, str(folder))
    for name in ("photos", "masks"):
        (folder / name).mkdir()
    rng = np.random.default_rng(0)
    for i in range(6):
        coarse = rng.integers(0, 256, (6, 7, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((96, 80)).save(folder / "photos" / f"p{i}.png")
        mask = np.zeros((80, 96), np.uint8)
        mask[20:50, 10 * i : 10 * i + 30] = 255
        Image.fromarray(mask).save(folder / "masks" / f"p{i}.png")
    (folder / "photos" / "p2.png").write_bytes(b"no png")
    (folder / "masks" / "p3.png").unlink()
    (folder / "masks" / "p4.png").write_bytes(b"no png")
    photos, run = str(folder / "photos"), str(folder / "run")
    cli.main(["run", photos, "-o", run, "-m", MODEL, "--no-progress", "--layers", "1", "3"])
    yield folder
    sys.path.remove(str(folder))
    sys.modules.pop("network_for_evaluation", None)


@pytest.fixture(scope="module")
def compared(planet: Path) -> Path:
    """An evaluation of two methods and the run's stored maps."""
    arguments = ["evaluate", str(planet / "run"), "-m", MODEL, "-o", str(planet / "both")]
    arguments += ["--methods", "gradcam", "--layers", "1,3", "3", "--steps", "10", "-b", "4"]
    arguments += ["--masks", str(planet / "masks"), "--tolerance", "8", "--no-progress", "--road"]
    cli.main(arguments)
    return planet / "both"


def test_every_image_has_a_row_with_its_metrics(compared: Path) -> None:
    rows = pq.read_table(compared / "evaluation.parquet").to_pylist()
    assert [row["id"] for row in rows] == ["p0.png", "p1.png", "p3.png", "p4.png", "p5.png"]
    assert [row["mask"] for row in rows] == [True, True, False, None, True]
    assert "expected a PNG" in rows[3]["error"] and rows[3]["status"] == "ok"
    for row in rows:
        assert row["status"] == "ok" and 0 < row["probability"] <= 1
        for name in ("stored", "gradcam_1_3", "gradcam_3", "gradcam_3_random", "edges"):
            for metric in METRICS:
                value = row[f"{name}_{metric}"]
                by_mask = metric in ("pointing", "energy", "iou", "best_iou")
                assert np.isnan(value) == (by_mask and not row["mask"]), (name, metric)


def test_stored_maps_are_worth_what_computed_ones_are(compared: Path) -> None:
    """The run stored the same explanation as bytes, which makes some pixels equal."""
    table = pq.read_table(compared / "evaluation.parquet").to_pydict()

    def apart(other: str, metric: str) -> float:
        columns = [np.array(table[f"{name}_{metric}"]) for name in ("stored", other)]
        return float(np.nanmedian(abs(columns[0] - columns[1])))

    for metric in ("deletion", "insertion", "energy"):
        assert apart("gradcam_1_3", metric) < 0.003, metric
    assert apart("gradcam_1_3", "energy") < 0.1 * apart("gradcam_3", "energy")


def test_means_stand_beside_both_baseline_maps(compared: Path) -> None:
    found = json.loads((compared / "evaluation.json").read_text())
    rows = pq.read_table(compared / "evaluation.parquet").to_pandas()
    assert (found["images"], found["with_mask"], found["failures"]) == (5, 3, {})
    assert found["settings"]["metrics"]["steps"] == 10
    assert list(found["maps"]) == ["stored", "gradcam_1_3", "gradcam_3"]
    last = found["maps"]["gradcam_3"]["insertion"]
    own, random = rows["gradcam_3_insertion"], rows["gradcam_3_random_insertion"]
    assert last["map"]["mean"] == pytest.approx(own.mean())
    assert last["random"]["mean"] == pytest.approx(random.mean())
    assert last["minus_random"]["mean"] == pytest.approx((own - random).mean())
    assert last["minus_stored"]["mean"] == pytest.approx((own - rows["stored_insertion"]).mean())
    assert last["map"]["low"] <= last["map"]["mean"] <= last["map"]["high"]
    assert found["maps"]["stored"]["pointing"]["edges"]["images"] == 3


def test_several_fusions_without_removal(planet: Path) -> None:
    out = planet / "fused"
    arguments = ["evaluate", str(planet / "photos"), "-m", MODEL, "-o", str(out), "--no-progress"]
    arguments += ["--layers", "1,3", "--fuse", "sum", "gated", "--no-removal"]
    cli.main([*arguments, "--masks", str(planet / "masks")])
    found = json.loads((out / "evaluation.json").read_text())
    assert list(found["maps"]) == ["gradcam_1_3_sum", "gradcam_1_3_gated"]
    gated = found["maps"]["gradcam_1_3_gated"]
    assert set(gated) == {"pointing", "energy", "iou", "best_iou"}
    assert (
        gated["energy"]["map"]["mean"] != found["maps"]["gradcam_1_3_sum"]["energy"]["map"]["mean"]
    )
    assert "minus_gradcam_1_3_sum" in gated["energy"]


def test_photos_are_explained_first_and_a_bad_one_is_counted(
    planet: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ["-m", MODEL, "-o", str(planet / "own"), "--layers", "3", "--steps", "2"]
    config += ["--randomisation", "1", "--baseline", "mean", "--no-progress"]
    cli.main(["evaluate", str(planet / "photos"), *config])
    printed = capsys.readouterr().out
    assert "1 (1 decode_error)" in printed and "images/s" in printed
    assert "random places" in printed and "gradcam_3" in printed
    found = json.loads((planet / "own" / "evaluation.json").read_text())
    rows = {r["id"]: r for r in pq.read_table(planet / "own/evaluation.parquet").to_pylist()}
    assert rows["p2.png"]["status"] == "decode_error"
    assert rows["p2.png"]["gradcam_3_deletion"] is None
    assert found["failures"] == {"decode_error": 1} and found["images"] == 5
    (step,) = found["randomisation"]
    assert (step["layer"], step["layers"]) == ("0", 3) and step["correlation"] < 0.9


def test_a_run_of_another_network_is_refused(planet: Path) -> None:
    run = open_run(planet / "run")
    made_by = json.loads((planet / "run" / "run.json").read_text())["explainer"]

    class Known:
        def __init__(self, **changes: object) -> None:
            self.changes = changes

        def fingerprint(self) -> dict[str, object]:
            return made_by | self.changes

    check_network(run, Known())  # type: ignore[arg-type]
    for change in ("weights", "preprocess"):
        with pytest.raises(RunError, match=rf"the model that made .*got other {change};"):
            check_network(run, Known(**{change: "another"}))  # type: ignore[arg-type]


def test_a_run_that_explained_regions_cannot_be_measured_and_says_so(planet: Path) -> None:
    photos, run = str(planet / "photos"), str(planet / "regions")
    asked = ["--explain", "within:1000km@0,0", "--layers", "1", "3", "--no-progress"]
    cli.main(["run", photos, "-o", run, "-m", MODEL, *asked])
    with pytest.raises(RunError, match=r"got 5 that cannot \(the first: .*explained a region, not"):
        evaluate(EvaluateConfig(run, ModelConfig(MODEL), progress=False))
    rows = pq.read_table(planet / "regions" / "evaluation.parquet")
    assert rows.column("status").to_pylist() == ["no_class"] * 5


def test_a_draw_is_the_same_again(planet: Path) -> None:
    ids = [s.entry.id for s in input_samples(str(planet / "photos"), 3, seed=1)]
    assert len(set(ids)) == 3 and ids == sorted(ids)
    assert ids == [s.entry.id for s in input_samples(str(planet / "photos"), 3, seed=1)]
    draws = {
        tuple(s.entry.id for s in input_samples(str(planet / "photos"), 3, seed))
        for seed in range(9)
    }
    assert len(draws) > 1
    assert len(input_samples(str(planet / "photos"), None, 0)) == 6


def test_masks_are_cropped_as_their_photos_are(tmp_path: Path) -> None:
    mask = np.zeros((50, 100), np.uint8)
    mask[:, 45:55] = 3  # a label of one column in the middle
    path = tmp_path / "b.png"
    Image.fromarray(mask).save(path)
    crop = Preprocess((20, 20), resize="crop", crop_pct=1.0)
    squash = Preprocess((20, 20), resize="squash")
    # The photo is twice as large as its mask.
    for preprocess, share in ((crop, 0.2), (squash, 0.1)):
        found = read_evidence(path, (200, 100), preprocess)
        assert found.shape == (20, 20)
        assert found.mean() == pytest.approx(share, abs=0.051) and found[:, 9:11].all()
    path.write_bytes(b"no png")
    with pytest.raises(DecodeError, match="expected a PNG"):
        read_evidence(path, (200, 100), crop)


def test_a_folder_of_masks_serves_evaluate_and_influence(planet: Path, tmp_path: Path) -> None:
    run, masks, names = str(tmp_path / "run"), tmp_path / "masks", tmp_path / "names.csv"
    (masks / "s.tar").mkdir(parents=True)
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for i in (0, 1, 5):
            tar.add(planet / "photos" / f"p{i}.png", f"p{i}.png")
    for i, name in ((0, "p0.png.png"), (1, "p1.png")):
        shutil.copy(planet / "masks" / f"p{i}.png", masks / "s.tar" / name)
    names.write_text("label,name\n255,evidence\n0,rest\n")
    cli.main(["run", str(tmp_path / "s.tar"), "-o", run, "-m", MODEL, "--no-progress"])
    metrics = MetricSettings(steps=2)
    config = EvaluateConfig(
        run, ModelConfig(MODEL), metrics=metrics, masks=masks, randomisation=0, progress=False
    )
    assert evaluate(config).summary["with_mask"] == 2
    influence = run_influence(run, masks, names, 10)
    assert (influence.images + influence.flat, influence.without_mask) == (2, 1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"methods": ("gradcan",)}, "methods from"),
        ({"normalize": ("none",)}, "normalize from"),
        ({"layers": ()}, "layers from"),
        ({"layers": "last"}, "layers as a list"),
        ({"score": "energy"}, "score in"),
        ({"fuse": "none"}, "fuse from"),
        ({"fuse": ("sum", "none")}, "fuse from"),
        ({"images": 0}, "images >= 1"),
        ({"removal": False}, "nothing would be measured"),
        ({"masks": Path("/nowhere")}, "masks as a folder"),
    ],
)
def test_what_cannot_be_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EvaluateConfig("photos", ModelConfig("demo"), **values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "values", [{"steps": 0}, {"baseline": "noise"}, {"rule": "simpson"}, {"threshold": 0.0}]
)
def test_settings_that_cannot_be_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        MetricSettings(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(("store", "off"), [("full", 0.01), ("grid", 0.05)])
def test_photos_of_several_shapes_are_measured(
    planet: Path, tmp_path: Path, store: str, off: float
) -> None:
    """Also where heatmaps are stored on the grid of a layer, and so smaller than the input."""
    photos, run = tmp_path / "photos", str(tmp_path / "run")
    photos.mkdir()
    for i, size in enumerate(((96, 80), (80, 96), (96, 80))):
        coarse = Image.open(planet / "photos" / f"p{i % 2}.png")
        coarse.resize(size).save(photos / f"{i}.png")
    network = ["-m", MODEL, "--resize", "short-side", "--side-step", "16", "--no-progress"]
    cli.main(["run", str(photos), "-o", run, *network, "--layers", "1", "3", "--store", store])
    # The stored maps, and the same computed again, agree as well as they are stored.
    again = ["--methods", "gradcam", "--layers", "1,3", "--steps", "4", "--baseline", "mean"]
    cli.main(["evaluate", run, *network, *again])
    rows = pq.read_table(Path(run) / "evaluation.parquet").to_pylist()
    assert [row["status"] for row in rows] == ["ok"] * 3
    for row in rows:
        for metric in ("drop", "insertion"):
            assert row[f"stored_{metric}"] == pytest.approx(row[f"gradcam_1_3_{metric}"], abs=off)


def test_an_exported_file_has_one_computation() -> None:
    config = EvaluateConfig("photos", ModelConfig("model.onnx"), methods=("gradcam",))
    with pytest.raises(ValueError, match="which has one fixed method"):
        contestants(config, None)


def test_a_stopped_evaluation_goes_on(planet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def evaluated(output: str) -> dict[str, object]:
        arguments = ["evaluate", str(planet / "photos"), "-m", MODEL, "-o", str(planet / output)]
        arguments += ["--layers", "3", "--steps", "3", "-b", "2", "--no-progress"]
        cli.main([*arguments, "--grid", "2", "--grid-confidence", "0", "--mosaics", "1"])
        rows = pq.read_table(planet / output / "evaluation.parquet").to_pylist()
        return {
            row["id"]: {k: v for k, v in row.items() if not k.endswith("explain_s")} for row in rows
        }

    calls: list[list[str]] = []
    batch = evaluation_module._Evaluator.batch
    stop_at = 2

    def stopping(self: object, images: list[object]) -> None:
        calls.append([image.row["id"] for image in images])  # type: ignore[attr-defined]
        if len(calls) == stop_at:
            raise KeyboardInterrupt
        batch(self, images)  # type: ignore[arg-type]

    whole = evaluated("whole")
    monkeypatch.setattr(evaluation_module._Evaluator, "batch", stopping)
    with pytest.raises(SystemExit):
        evaluated("stopped")
    kept = planet / "stopped" / "evaluation.partial.jsonl"
    assert len(kept.read_text().splitlines()) == 1 + 2
    stop_at = 0
    again = evaluated("stopped")
    assert calls[0] not in calls[2:] and len(calls) == 4  # the first batch is not measured again
    assert list(again) == list(whole) and again == whole
    assert not kept.exists()
    mosaics = [
        json.loads((planet / name / "evaluation.json").read_text())["mosaics"]
        for name in ("whole", "stopped")
    ]
    assert mosaics[0] == mosaics[1]


def test_another_input_size_does_not_go_on_with_the_rows(
    planet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(self: object, images: list[object]) -> None:
        measured.append(len(images))
        batch(self, images)  # type: ignore[arg-type]
        if len(measured) == 2:
            raise KeyboardInterrupt

    batch, measured = evaluation_module._Evaluator.batch, list[int]()
    monkeypatch.setattr(evaluation_module._Evaluator, "batch", stopped)
    arguments = ["evaluate", str(planet / "photos"), "-m", MODEL, "-o", str(planet / "sized")]
    arguments += ["--layers", "3", "--steps", "2", "-b", "2", "--no-progress"]
    with pytest.raises(SystemExit):
        cli.main(arguments)
    cli.main([*arguments, "--img-size", "48", "48"])
    assert measured == [2, 2, 2, 2, 1]  # all five again


def test_a_refused_game_leaves_nothing_behind(planet: Path) -> None:
    out = planet / "refused"
    config = EvaluateConfig(str(planet / "run"), ModelConfig(MODEL), out, grid=2, progress=False)
    with pytest.raises(ValueError, match="stored heatmaps alone"):
        evaluate(config)
    assert not out.exists()


def test_an_image_that_is_listed_twice_has_two_rows(planet: Path) -> None:
    photos = planet / "photos"
    names = ["p0.png", "p1.png", "p0.png"]
    listing = planet / "twice.txt"
    listing.write_text("".join(f"{photos / name}\n" for name in names))
    config = EvaluateConfig(
        str(listing), ModelConfig(MODEL), planet / "twice", layers=("3",),
        metrics=MetricSettings(steps=2), progress=False,
    )  # fmt: skip
    rows = pq.read_table(evaluate(config).rows).to_pylist()
    assert [Path(row["id"]).name for row in rows] == names
    assert rows[0]["gradcam_3_deletion"] == pytest.approx(rows[2]["gradcam_3_deletion"])
