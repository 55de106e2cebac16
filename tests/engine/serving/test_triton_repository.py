"""Model repositories for NVIDIA Triton Inference Server: complete or not there at all."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from triton_stand_in import datatype, read_config

from combicam import (
    ArtifactError,
    ClassTable,
    Explainer,
    LoadedModel,
    Preprocess,
    cli,
    export_triton_repository,
)
from combicam.engine.explain.artifact_verify import TOLERANCES
from combicam.engine.serving import client, triton_repository


def tiny() -> nn.Module:
    """One block, four classes."""
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU())
    return nn.Sequential(block, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))


def test_labels(tmp_path: Path) -> None:
    names = ClassTable(names=("one\nline", "", "Zürich", "d"))
    explainer = Explainer(tiny(), (16, 16), layers="last", classes=names)
    found = export_triton_repository(explainer, tmp_path, name="t", target_input="none")
    text = (found.path / "labels.txt").read_text(encoding="utf-8")
    assert text.splitlines() == ["one line", "1", "Zürich", "d"]
    readme = (found.path / "README.md").read_text()
    assert "| `logits` | FP32 | [B, 4] |" in readme and "`targets`" not in readme


@pytest.mark.parametrize("channels", [1, 12])
def test_other_channels(channels: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(channels, 6, 3, 2, 1), nn.ReLU())
    model = nn.Sequential(block, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))
    whole = Preprocess((16, 20), resize="squash", channels=channels)
    explainer = Explainer(model, layers="last", preprocess=whole)
    path = export_triton_repository(explainer, tmp_path, name="t").path
    images = next(i for i in read_config(path).input if i.name == "images")
    assert list(images.dims) == [channels, 16, 20]
    settings = client.read_settings(path)
    assert settings["channels"] == channels
    assert settings["steps"][-1] == f"float32 [B,{channels},H,W], C order"
    expected = dict(np.load(path / "golden" / "output.npz"))
    given = dict(np.load(path / "golden" / "input.npz"))
    found = explainer(torch.from_numpy(given["images"]), torch.from_numpy(given["targets"]))
    np.testing.assert_allclose(found.heatmaps.numpy(), expected["heatmaps"], atol=1e-3)
    photo, readme = tmp_path / "photo.png", (path / "README.md").read_text()
    pixels = np.random.default_rng(0).integers(0, 256, (16, 20, 3), np.uint8)
    Image.fromarray(pixels).save(photo)
    if channels == 1:
        luma = np.asarray(Image.fromarray(pixels).convert("L"))
        assert np.array_equal(client.decode(photo, settings), luma[..., None])
        assert np.array_equal(client.decode(photo, settings, 3), pixels)
        floats = client.normalize(client.decode(photo, settings), settings)
        np.testing.assert_allclose(floats[0, 0], (luma / 255 - 0.449) / 0.226, atol=1e-5)
        assert "client.py photo.jpg" in readme and "grey, 0.299 R" in settings["steps"][0]
    else:
        with pytest.raises(ValueError, match="images of 12 channels, not photos"):
            client.decode(photo, settings)
        assert "photo.jpg" not in readme and "images of 12 channels, not photos." in readme


@pytest.mark.long
def test_the_readme_says_what_targets_are(tmp_path: Path) -> None:
    explainer = Explainer(tiny(), (16, 16), layers="last", targets=2)
    served = [
        export_triton_repository(explainer, tmp_path, name=kind, target_input=kind, verify=0).path
        for kind in ("classes", "weights")
    ]
    classes, weights = ((path / "README.md").read_text() for path in served)
    assert "-2 the second best, and so on down to -4" in classes and "[-1, -2] selects" in classes
    assert "photo.jpg --url localhost:8000\n" in classes
    assert "regions or contrasts" in weights and "< 0 against" in weights
    # The client explains no regions unless it is told which.
    settings = client.read_settings(served[1])
    images = np.zeros((1, 3, 16, 16), np.float32)
    command = re.search(r"client\.py photo\.jpg --url localhost:8000 --targets (.+)", weights)
    assert command is not None
    client.make_feed(settings, images, [int(c) for c in command[1].split()])
    with pytest.raises(ValueError, match="name their classes"):
        client.make_feed(settings, images)


def test_half_precision_is_served_as_float32(tmp_path: Path) -> None:
    explainer = Explainer(tiny(), (16, 16), layers=["0"], dtype="float16")
    found = export_triton_repository(explainer, tmp_path / "models", name="half")
    config = read_config(found.path)
    assert {datatype(t) for t in (*config.input, *config.output)} == {"FP32", "INT64"}
    about = json.loads((found.path / "golden/golden.json").read_text())
    assert about["tolerance"] == TOLERANCES["float16"] and "float32" in about["computed_by"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": ""}, "letters, digits.*got ''; pass name='model'"),
        ({"name": "a/b"}, "got 'a/b'; pass name='a_b'"),
        ({"name": "../x"}, "pass name='x'"),
        ({"max_batch_size": 0}, ">= 1, got 0; pass"),
        ({"max_batch_size": -4}, ">= 1, got -4; pass"),
        ({"max_batch_size": 2.5}, "an int, got 2.5"),
        ({"target_input": "weight"}, "target_input in .*'weights'.*got 'weight'"),
    ],
)
def test_what_the_server_would_refuse(options: Any, words: str, tmp_path: Path) -> None:
    explainer = Explainer(tiny(), (16, 16), layers="last")
    with pytest.raises(ValueError, match=words):
        export_triton_repository(explainer, tmp_path / "models", **options)
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten_or_left_half_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    explainer = Explainer(tiny(), (16, 16), layers="last")
    (tmp_path / "models" / "Sequential").mkdir(parents=True)
    note = tmp_path / "models" / "Sequential" / "note"
    note.write_text("mine")
    with pytest.raises(
        ValueError, match=r"no model 'Sequential'.*remove it, or choose another name"
    ):
        export_triton_repository(explainer, tmp_path / "models")
    note.unlink()

    def disagree(*_: Any) -> None:
        raise ArtifactError("golden")

    with monkeypatch.context() as patch:
        patch.setattr(triton_repository, "check_golden", disagree)
        with pytest.raises(ArtifactError, match="golden"):
            export_triton_repository(explainer, tmp_path / "models")
    assert [p.name for p in tmp_path.rglob("*")] == ["models", "Sequential"]
    found = export_triton_repository(explainer, tmp_path / "models")  # an empty folder is free
    assert found.path == tmp_path / "models" / "Sequential"
    assert [p.name for p in tmp_path.iterdir()] == ["models"]
    readable = found.path.stat().st_mode & 0o777
    (tmp_path / "ordinary").mkdir()
    assert readable == (tmp_path / "ordinary").stat().st_mode & 0o777
    with pytest.raises(FileNotFoundError, match=r"existing folder, got .*nowhere; make it"):
        export_triton_repository(explainer, tmp_path / "nowhere" / "models")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="expected a folder, got the file"):
        export_triton_repository(explainer, tmp_path / "file")


@pytest.mark.parametrize(
    ("model", "name"),
    [("timm:resnet50.a1_in1k", "resnet50.a1_in1k"), ("a.b:make", "make"), ("..:", "model")],
)
def test_names_of_networks(model: str, name: str) -> None:
    assert triton_repository.model_name(model) == name


@pytest.mark.long
def test_from_the_command_line(
    demo_model: LoadedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repository, graph = tmp_path / "models", tmp_path / "planet.onnx"
    both = ["export", "-m", "demo", "-o", str(graph), "--triton-repository", str(repository)]
    cli.main([*both, "--layers", "last", "--target-input", "none"])
    out = capsys.readouterr().out
    assert str(repository / "demo") in out and "planet.onnx" in out and graph.is_file()
    assert [t.name for t in read_config(repository / "demo").input] == ["images"]
    assert demo_model.classes is not None
    labels = (repository / "demo" / "labels.txt").read_text().splitlines()
    assert tuple(labels) == demo_model.classes.names
    with pytest.raises(SystemExit, match=r"--output model.onnx or --triton-repository DIR"):
        cli.main(["export", "-m", "demo"])
