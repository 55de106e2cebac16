"""Runs with ``crops="five"``: rows, promises, workers, exported files and readers of the run."""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import shard_bytes, wait_for
from numpy.typing import NDArray
from PIL import Image

import combicam
from combicam import Explainer, LoadedModel, RunConfig, read_shard
from combicam.cli import main
from combicam.demo.planet import postcard
from combicam.engine.evaluation.config import EvaluateConfig
from combicam.engine.evaluation.evaluate import evaluate
from combicam.engine.geo.density import RADII_KM, prediction_density
from combicam.engine.geo.five_crop import FiveCropExplainer, explain_five_crops
from combicam.engine.images.resize import visible_box
from combicam.engine.outputs.fiftyone_samples import over_photo
from combicam.engine.outputs.run_concept_influence import run_influence
from combicam.engine.report.report import write_report
from combicam.engine.report.thumbnails import run_facts
from combicam.engine.run.explainer import make_run_explainer
from combicam.engine.run.open_run import open_run
from combicam.engine.runner import run_images
from combicam.engine.shards.map_format import finest
from combicam.errors import ArtifactError, RunError

# (height, width), pixels. The shorter side of what five crops are cut from is 182 pixels.
SIZES = [(182, 242), (242, 182), (182, 242), (182, 182), (300, 421), (182, 400), (182, 242)]
BROKEN = 2
FLAGS = ["-m", "demo", "--resize", "crop", "--crops", "five", "--layers", "last", "--no-progress"]


@pytest.fixture(scope="module")
def pixels() -> list[NDArray[np.uint8]]:
    cards = [Image.fromarray(postcard(3 * i, 70 + i).image) for i in range(len(SIZES))]
    return [
        np.array(card.resize((width, height)))
        for card, (height, width) in zip(cards, SIZES, strict=True)
    ]


@pytest.fixture(scope="module")
def photos(pixels: list[NDArray[np.uint8]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{i}.png")
    (folder / f"{BROKEN}.png").write_bytes(b"no photo")
    return folder


@pytest.fixture(scope="module")
def explainer(demo_model: LoadedModel) -> Explainer:
    preprocess = replace(demo_model.preprocess, resize="crop")
    cropped = replace(demo_model, preprocess=preprocess)
    return Explainer(cropped, layers=["stage1", "stage4.1"], targets=2)


@pytest.fixture(scope="module")
def five(explainer: Explainer) -> FiveCropExplainer:
    return FiveCropExplainer(explainer)


def config(photos: Path, output: Path, **changes: Any) -> RunConfig:
    values = {"model": "fake", "batch_size": 10, "workers": 2, "progress": False, "crops": "five"}
    return RunConfig(str(photos), output, **values | changes)  # type: ignore[arg-type]


def explained() -> list[int]:
    return [i for i in range(len(SIZES)) if i != BROKEN]


def as_stored(heatmaps: torch.Tensor) -> NDArray[np.float32]:
    return heatmaps.numpy() * np.float32(255)


def test_rows_are_what_five_crops_say(
    pixels: list[NDArray[np.uint8]],
    photos: Path,
    explainer: Explainer,
    five: FiveCropExplainer,
    tmp_path: Path,
) -> None:
    summary = run_images(config(photos, tmp_path / "run"), five)
    assert summary.failures == {"decode_error": 1} and summary.images == len(SIZES)
    shard = read_shard(tmp_path / "run", 0)
    rows = open_run(tmp_path / "run").table().to_pylist()
    classes = explainer.classes
    assert classes is not None and shard.ok.tolist() == [i != BROKEN for i in range(len(SIZES))]
    for i in explained():
        found = explain_five_crops(explainer, pixels[i])
        assert shard.targets[i].tolist() == found.targets.tolist()
        np.testing.assert_allclose(shard.scores[i], found.scores, rtol=1e-4, atol=1e-6)
        share = found.probabilities / found.probabilities.sum()
        places = rows[i]["places"]
        assert places[0]["class"] == rows[i]["targets"][0]
        expected = share[[place["class"] for place in places]]
        probabilities = [place["probability"] for place in places]
        np.testing.assert_allclose(probabilities, expected, rtol=1e-4, atol=1e-6)
        density = prediction_density(
            share[None], classes.latitudes, classes.longitudes, found.targets[:1]
        )
        ours = [rows[i][f"density_{radius:g}km"] for radius in RADII_KM]
        np.testing.assert_allclose(ours, density[0], rtol=1e-4, atol=1e-6)
        height, width = SIZES[i]
        if min(SIZES[i]) == 182:  # the photo is its own scaled image
            assert shard.heatmaps[i].shape == (2, height, width)
            difference = np.abs(shard.heatmaps[i] - as_stored(found.heatmaps))
            assert difference.max() < 0.5 + 0.1
            assert not shard.heatmaps[i][:, ~found.covered.numpy()].any()
            assert found.covered.all() == (width / height < 7 / 4)
        else:
            assert shard.heatmaps[i].shape == (2, 182, 255)
            difference = np.abs(shard.heatmap(i, (height, width)) - found.heatmaps.numpy())
            assert difference.max() < 0.01 and difference.mean() < 0.001


def test_one_photo_a_batch_is_the_same(
    photos: Path, five: FiveCropExplainer, tmp_path: Path
) -> None:
    run_images(config(photos, tmp_path / "two"), five)
    run_images(config(photos, tmp_path / "one", batch_size=1), five)
    two, one = (read_shard(tmp_path / name, 0) for name in ("two", "one"))
    assert np.array_equal(two.targets, one.targets)
    np.testing.assert_allclose(two.scores, one.scores, rtol=1e-4, atol=1e-6)
    for i in explained():
        assert np.abs(two.heatmaps[i].astype(int) - one.heatmaps[i]).max() <= 1


def test_a_bad_photo_does_not_change_its_neighbours(
    pixels: list[NDArray[np.uint8]], photos: Path, five: FiveCropExplainer, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    for path in photos.iterdir():
        (tmp_path / "in" / path.name).write_bytes(path.read_bytes())
    # One photo a batch: a network's sums round otherwise at another place of a batch.
    bad = config(tmp_path / "in", tmp_path / "run", batch_size=5)
    run_images(bad, five)
    Image.fromarray(pixels[BROKEN]).save(tmp_path / "in" / f"{BROKEN}.png")
    run_images(config(tmp_path / "in", tmp_path / "good", batch_size=5), five)
    before, good = (read_shard(tmp_path / name, 0) for name in ("run", "good"))
    assert good.ok.all()
    for i in explained():
        assert before.table.slice(i, 1) == good.table.slice(i, 1)
        assert np.array_equal(before.heatmaps[i], good.heatmaps[i])
    run_images(replace(bad, retry_failed=True), five)
    assert shard_bytes(tmp_path / "run") == shard_bytes(tmp_path / "good")


def test_grids_and_sizes(
    pixels: list[NDArray[np.uint8]],
    photos: Path,
    explainer: Explainer,
    five: FiveCropExplainer,
    tmp_path: Path,
) -> None:
    run_images(config(photos, tmp_path / "grid", store="grid"), five)
    run_images(config(photos, tmp_path / "sized", heatmap_size=(50, 70)), five)
    grid, sized = (read_shard(tmp_path / name, 0) for name in ("grid", "sized"))
    h, w = finest(explainer.layers)
    for i in (0, 1, 3):
        height, width = SIZES[i]
        assert grid.heatmaps[i].shape == (2, round(h * height / 160), round(w * width / 160))
        full = explain_five_crops(explainer, pixels[i]).heatmaps.numpy()
        difference = np.abs(grid.heatmap(i, SIZES[i]) - full)
        assert difference.mean() < 0.005
        assert sized.heatmaps[i].shape == (2, 50, 70)


def test_what_is_asked_for(
    pixels: list[NDArray[np.uint8]], photos: Path, five: FiveCropExplainer, tmp_path: Path
) -> None:
    words = {
        "named": (("top", "17"), lambda n: torch.tensor([[-1, 17]])),
        "regions": (
            ("within:1500km@48.9,2.4", "48.9,2.4-not-55.8,37.6"),
            lambda n: weights(five, n),
        ),
    }
    for name, (explain, targets) in words.items():
        run_images(config(photos, tmp_path / name, explain=explain), five)
        shard = read_shard(tmp_path / name, 0)
        for i in (0, 1, 3):
            found = five(pixels[i][None], targets=targets(five.num_classes))
            np.testing.assert_allclose(shard.scores[i], found.scores[0], rtol=1e-4, atol=1e-6)
            difference = np.abs(shard.heatmaps[i] - as_stored(found.heatmaps[0]))
            assert difference.max() < 0.5 + 0.1
        if name == "named":
            best = five(pixels[0][None]).targets[0, 0]
            assert shard.targets[0].tolist() == [int(best), 17]


def weights(five: FiveCropExplainer, classes: int) -> torch.Tensor:
    assert five.classes is not None
    cells = combicam.CellTable.from_classes(five.classes)
    against = np.zeros(classes, np.float32)
    against[cells.holding(48.9, 2.4)], against[cells.holding(55.8, 37.6)] = 1, -1
    return torch.from_numpy(np.stack([cells.within(1500, 48.9, 2.4), against]))[None]


class Short(FiveCropExplainer):
    """Has memory for few photos at once."""

    most = 1

    def __init__(self, explainer: Explainer) -> None:
        super().__init__(explainer)
        self.sizes: list[int] = []

    def merge(self, photos: Any, targets: Any = None) -> Any:
        self.sizes.append(len(photos))
        if len(photos) > self.most:
            raise torch.OutOfMemoryError
        return super().merge(photos, targets)


def test_memory_that_is_short(photos: Path, explainer: Explainer, tmp_path: Path) -> None:
    short, enough = Short(explainer), Short(explainer)
    enough.most = 2  # ten images at once are two photos
    plain = run_images(config(photos, tmp_path / "plain"), enough)
    halved = run_images(config(photos, tmp_path / "run"), short)
    assert set(enough.sizes) == {2} and plain.batch_limit is None
    assert halved.batch_limit == 1 and halved.halvings == 1 and short.sizes[:2] == [2, 1]
    one, two = (read_shard(tmp_path / name, 0) for name in ("run", "plain"))
    assert np.array_equal(one.targets, two.targets)
    np.testing.assert_allclose(one.scores, two.scores, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_a_killed_run_is_continued(photos: Path, tmp_path: Path) -> None:
    for copy in range(6):
        for path in photos.iterdir():
            target = tmp_path / "in" / f"{copy}{path.name}"
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(path.read_bytes())
    flags = [*FLAGS, "-b", "5", "--workers", "2", "--shard-size", "4", "--device", "cpu"]
    command = ["run", str(tmp_path / "in"), *flags, "-o"]
    code = f"import torch; torch.set_num_threads({torch.get_num_threads()})\n"
    code += "import sys; from combicam.cli import main; main(sys.argv[1:])"
    process = subprocess.Popen([sys.executable, "-c", code, *command, str(tmp_path / "run")])
    wait_for(lambda: shard_bytes(tmp_path / "run") or process.poll() is not None, 120)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    left = shard_bytes(tmp_path / "run")
    main([*command, str(tmp_path / "run")])
    main([*command, str(tmp_path / "whole")])
    whole = shard_bytes(tmp_path / "whole")
    assert 0 < len(left) < len(whole) == 11 and left.items() <= whole.items()
    assert shard_bytes(tmp_path / "run") == whole
    one = [word for word in command if word not in ("--crops", "five")]
    with pytest.raises(SystemExit, match=r"explainer\.crops: 5 there, null now"):
        main([*one, str(tmp_path / "run")])
    main([*one, str(tmp_path / "one")])
    with pytest.raises(SystemExit, match=r"explainer\.crops: null there, 5 now"):
        main([*command, str(tmp_path / "one")])


@pytest.mark.slow
def test_workers_of_several_processes(photos: Path, tmp_path: Path) -> None:
    for name, where in (("one", ["--device", "cpu"]), ("two", ["--devices", "cpu", "cpu"])):
        main(["run", str(photos), "-o", str(tmp_path / name), *FLAGS, "--shard-size", "3", *where])
    # The network rounds by its number of threads, which is another one in each process.
    one, two = (open_run(tmp_path / name).table().to_pylist() for name in ("one", "two"))
    for ours, theirs in zip(one, two, strict=True):
        assert ours["targets"] == theirs["targets"] and ours["status"] == theirs["status"]
        if ours["status"] == "ok":
            np.testing.assert_allclose(ours["scores"], theirs["scores"], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_exported_files(
    photos: Path, explainer: Explainer, five: FiveCropExplainer, tmp_path: Path
) -> None:
    combicam.export(explainer, tmp_path / "model.onnx", verify=0)
    loaded = config(photos, tmp_path / "file", model=str(tmp_path / "model.onnx"))
    combicam.run(loaded)
    run_images(config(photos, tmp_path / "network"), five)
    ours, theirs = (read_shard(tmp_path / name, 0) for name in ("file", "network"))
    assert np.array_equal(ours.targets, theirs.targets)
    np.testing.assert_allclose(ours.scores, theirs.scores, rtol=1e-4, atol=1e-5)
    for i in explained():
        assert np.abs(ours.heatmaps[i].astype(int) - theirs.heatmaps[i]).max() <= 2
    combicam.export(explainer, tmp_path / "best.onnx", target_input="none", verify=0)
    best = replace(loaded, model=combicam.ModelConfig(str(tmp_path / "best.onnx")))
    with pytest.raises(ArtifactError, match="target_input='classes'"):
        combicam.run(best)


def test_readers_see_the_whole_photo(photos: Path, five: FiveCropExplainer, tmp_path: Path) -> None:
    run = tmp_path / "run"
    summary = run_images(config(photos, run, overlays=4), five)
    widths = [Image.open(path).width for path in summary.overlays]
    # Two pictures side by side, each as wide as its photo.
    wide, high = (SIZES[i][1] for i in (0, 1))
    assert widths[0] - widths[1] == 2 * (wide - high)
    facts = run_facts(open_run(run))
    assert facts.preprocess is not None and facts.preprocess.resize == "cover"
    assert visible_box((242, 182), facts.preprocess) == (0, 0, 242, 182)
    heatmap = read_shard(run, 0).heatmaps[0][0]
    assert np.array_equal(over_photo(heatmap, (242, 182), facts.preprocess), heatmap)
    write_report(run, tmp_path / "report.html")
    assert "px, five crops, bilinear" in (tmp_path / "report.html").read_text(encoding="utf-8")
    # The mask's left half is concept 1: its influence follows from the map over the whole photo.
    masks = tmp_path / "masks"
    masks.mkdir()
    mask = np.zeros((100, 100), np.uint8)
    mask[:, :50] = 1
    Image.fromarray(mask).save(masks / "0.png")
    (tmp_path / "names.csv").write_text("label,name\n0,right\n1,left\n")
    table = run_influence(run, masks, tmp_path / "names.csv", k=500)
    found = {row["concept"]: row["influence"] for row in table.rows.to_pylist()}
    expected = combicam.concept_influence(heatmap[None], mask[None], k=500)[0]
    assert found == {"right": pytest.approx(expected[0]), "left": pytest.approx(expected[1])}
    with pytest.raises(RunError, match="those of five crops"):
        evaluate(EvaluateConfig(str(run), model="demo", progress=False))


def test_what_cannot_be(
    photos: Path, explainer: Explainer, five: FiveCropExplainer, tmp_path: Path
) -> None:
    for changes, words in (
        ({"crops": "six"}, r"crops in \('one', 'five'\), got 'six'"),
        ({"store": "layers"}, "'full' or 'grid' with crops='five'"),
        ({"cuda_graphs": True}, "crops='five' or cuda_graphs"),
    ):
        with pytest.raises(ValueError, match=words):
            config(photos, tmp_path / "run", **changes)
    chosen = config(photos, tmp_path / "run")
    with pytest.raises(ValueError, match="got Explainer with crops='five'"):
        run_images(chosen, explainer)
    with pytest.raises(ValueError, match="got FiveCropExplainer with crops='one'"):
        run_images(replace(chosen, crops="one"), five)
    with pytest.raises(ValueError, match=r"got 'squash', .* \(--resize crop\)"):
        make_run_explainer(config(photos, tmp_path / "run", model="demo"))
    assert not (tmp_path / "run").exists()


def test_fewer_images_than_crops_at_once(tmp_path: Path) -> None:
    sizes = {n: config(tmp_path, tmp_path / "run", batch_size=n).photos_at_once for n in (1, 9, 10)}
    assert sizes == {1: 1, 9: 1, 10: 2}
    assert config(tmp_path, tmp_path / "run", crops="one").photos_at_once == 10
