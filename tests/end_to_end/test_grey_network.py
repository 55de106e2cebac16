"""A network of grey images over photos of all modes, by the commands; one of many channels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from cam_oracle import combi_cam
from PIL import Image
from torch import nn

from combicam import Explainer, LoadedModel, ModelConfig, Preprocess, RunConfig, cli, open_run, run
from combicam.engine.distribution.ray_data import Explain
from combicam.engine.geo.five_crop import FiveCropExplainer, explain_five_crops
from combicam.engine.images.decode import decode_image

SIZE = (24, 32)
LAYERS = ("1", "3")


def network(channels: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(channels, 6, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, 2, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    ).eval()


def bare() -> nn.Module:
    return network(1)


def loaded() -> LoadedModel:
    return LoadedModel(network(1), Preprocess(SIZE, resize="squash", channels=1), "grey")


def twelve() -> nn.Module:
    return network(12)


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[str]]:
    """Photos in in/, and the arguments of a command for one of the networks above."""
    folder = tmp_path / "in"
    folder.mkdir()
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).resize((45, 35))
    clear = image.copy()
    clear.putalpha(Image.linear_gradient("L").resize(image.size))
    for name, one in {
        "a.jpg": image,
        "b.jpg": image.convert("L"),
        "c.png": image.convert("L"),
        "d.png": clear,
    }.items():
        one.save(folder / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    return lambda name: ["-m", f"{Path(__file__).stem}:{name}"]


def rows(folder: str) -> list[dict[str, Any]]:
    return pq.read_table(Path(folder) / "shards").to_pylist()


def test_a_run_its_report_and_its_pictures(
    inputs: Callable[[str], list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    model = inputs("loaded")
    cli.main(["run", "in", "-o", "run", *model, "--overlays", "1", "--no-progress"])
    found = open_run("run")
    shard = found.shard(0)
    exact, preprocess = network(1).double(), Preprocess(SIZE, resize="squash", channels=1)
    for i, row in enumerate(rows("run")):
        assert row["status"] == "ok"
        pixels = decode_image((Path("in") / row["id"]).read_bytes(), preprocess).pixels
        x = ((torch.from_numpy(pixels).double() / 255 - 0.449) / 0.226).permute(2, 0, 1)[None]
        logits = exact(x)[0].detach()
        assert row["targets"] == [int(logits.argmax())]
        assert row["scores"][0] == pytest.approx(float(logits.softmax(0).max()), abs=1e-5)
        expected = combi_cam(exact, LAYERS, x, logits.argmax()[None], score="logprob")[0]
        assert np.abs(shard.heatmaps[i, 0] - 255 * expected.numpy()).max() < 1.5
    picture = next(Path("run/overlays").iterdir())
    shown = np.asarray(Image.open(picture).convert("RGB")).astype(int)
    assert (shown.max(-1) - shown.min(-1)).max() > 60  # of the photo, which has colours
    cli.main(["report", "run"])
    page = Path("run/report.html").read_text(encoding="utf-8")
    assert "px, grey, " in page and page.count("data:image/webp;base64,") == 4
    cli.main(["overlay", "in/a.jpg", "in/d.png", "-o", "drawn", *model, "--figure"])
    assert len(list(Path("drawn").iterdir())) == 4
    drawn = np.asarray(Image.open("drawn/a.overlay.png")).astype(int)
    assert drawn.shape == (35, 45, 3) and (drawn.max(-1) - drawn.min(-1)).max() > 60
    capsys.readouterr()
    cli.main(["layers", *inputs("bare"), "--img-size", "24", "32"])
    assert capsys.readouterr().out.count("ReLU") == 2


@pytest.mark.long
def test_a_file_gives_the_rows_of_its_network(inputs: Callable[[str], list[str]]) -> None:
    cli.main(["export", "-o", "grey.onnx", *inputs("loaded")])
    for model, name in ((inputs("loaded"), "one"), (["-m", "grey.onnx"], "two")):
        cli.main(["run", "in", "-o", name, *model, "--no-progress"])
    for ours, theirs in zip(rows("one"), rows("two"), strict=True):
        assert ours["targets"] == theirs["targets"]
        a, b = (np.frombuffer(row["heatmap"], np.uint8).astype(int) for row in (ours, theirs))
        assert np.abs(a - b).max() <= 1


def test_an_evaluation_with_mosaics(inputs: Callable[[str], list[str]]) -> None:
    options = ["--grid", "2", "--grid-confidence", "0", "--baseline", "black", "--steps", "4"]
    cli.main(["evaluate", "in", "-o", "evaluation", *inputs("loaded"), "--no-progress", *options])
    measured = pq.read_table("evaluation/evaluation.parquet").to_pylist()
    assert {row["status"] for row in measured} == {"ok"}
    assert all(0 <= row["gradcam_blocks_deletion"] <= 1 for row in measured)


def test_five_crops(inputs: Callable[[str], list[str]]) -> None:
    grey = Preprocess(SIZE, channels=1)
    explainer = Explainer(network(1), layers=LAYERS, preprocess=grey)
    pixels = np.array(Image.open("in/a.jpg"))
    luma = np.array(Image.open("in/a.jpg").convert("L"))[..., None]
    found, same = (explain_five_crops(explainer, photo) for photo in (pixels, luma))
    assert torch.equal(found.heatmaps, same.heatmaps)
    config = RunConfig("in", "run", ModelConfig("fake"), crops="five", progress=False, workers=1)
    assert not run(config, FiveCropExplainer(explainer)).failures


def test_columns_of_ray(inputs: Callable[[str], list[str]]) -> None:
    explain = Explain(inputs("loaded")[1])
    luma = np.asarray(Image.open("in/c.png"))
    both = [
        explain({name: np.array([value], object if name == "bytes" else None)})
        for name, value in (("bytes", Path("in/c.png").read_bytes()), ("image", luma))
    ]
    assert both[0]["heatmap"].to_pylist() == both[1]["heatmap"].to_pylist()


def test_photos_for_a_network_of_many_channels_are_refused(
    inputs: Callable[[str], list[str]],
) -> None:
    model = [*inputs("twelve"), "--img-size", "24"]
    for command in (
        ["run", "in", "-o", "new", "--no-progress"],
        ["overlay", "in/a.jpg", "-o", "new"],
        ["evaluate", "in", "-o", "new", "--no-progress"],
    ):
        with pytest.raises(SystemExit, match=rf"{command[0]}: expected a network of 1 .* of 12;"):
            cli.main([*command, *model])
        assert not Path("new").exists()
    with pytest.raises(ValueError, match="Explain: expected a network of 1 channel"):
        Explain(ModelConfig(model[1], img_size=24))
    cli.main(["export", "-o", "twelve.ts", *model])
    assert Explainer.load("twelve.ts").channels == 12
