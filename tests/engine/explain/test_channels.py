"""Images of one channel and of many: maps against autograd in float64, files at other batches."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cam_oracle import assert_rounding_only, combi_cam
from PIL import Image
from torch import Tensor, nn

from combicam import Explainer, LoadedModel, Preprocess, export
from combicam.engine.explain.image_batch import image_tensor
from combicam.errors import ArtifactError, TraceError
from combicam.export.formats.artifact import Description, read_description

SIZE = (16, 24)
LAYERS = ("1", "3")


def chain(channels: int) -> nn.Sequential:
    torch.manual_seed(channels)
    return nn.Sequential(
        nn.Conv2d(channels, 6, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, 2, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    ).eval()


def images(count: int, channels: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, channels, *SIZE, generator=generator)


@pytest.mark.parametrize("method", ["gradcam", "layercam"])
@pytest.mark.parametrize("channels", [1, 4, 12])
def test_maps_are_those_of_autograd(channels: int, method: str) -> None:
    model = chain(channels)
    explainer = Explainer(model, SIZE, layers=LAYERS, method=method, score="prob", targets=2)
    assert explainer.channels == explainer.preprocess.channels == channels
    x = images(20, channels)
    found = explainer(x)
    exact = model.double()
    logits = exact(x.double())
    torch.testing.assert_close(found.logits.double(), logits, atol=1e-5, rtol=0)
    assert torch.equal(found.targets, logits.topk(2).indices)
    for k in range(2):
        expected = combi_cam(exact, LAYERS, x.double(), found.targets[:, k], method)
        assert_rounding_only((found.heatmaps[:, k].double() - expected).abs().amax((1, 2)))


@pytest.mark.parametrize(
    ("channels", "suffix"), [(1, ".onnx"), (4, ".ts"), (12, ".onnx"), (12, ".ts")]
)
def test_files_at_other_batch_sizes(channels: int, suffix: str, tmp_path: Path) -> None:
    model, path = chain(channels), tmp_path / f"model{suffix}"
    verification = export(Explainer(model, SIZE, layers=LAYERS, score="prob"), path, verify=4)
    assert verification is not None and verification.agrees
    description = read_description(path)
    assert description.signature.channels == channels and description.format == 3
    loaded = Explainer.load(path)
    assert loaded.channels == channels
    for batch in (1, 17):
        x = images(batch, channels, seed=batch)
        found = loaded(x)
        expected = combi_cam(model.double(), LAYERS, x.double(), found.targets[:, 0])
        errors = (found.heatmaps[:, 0].double() - expected).abs().amax((1, 2))
        assert errors.median() < 1e-5 and errors.max() < 2e-3
    with pytest.raises(ValueError, match=rf"expected images as float \[B,{channels},16,24\]"):
        loaded(torch.randn(2, 3, *SIZE))


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 12])
def test_compiled_packages(channels: int, tmp_path: Path) -> None:
    explainer = Explainer(chain(channels), SIZE, layers=LAYERS)
    export(explainer, tmp_path / "model.pt2", verify=4)
    x = images(5, channels)
    found = Explainer.load(tmp_path / "model.pt2")(x)
    torch.testing.assert_close(found.heatmaps, explainer(x).heatmaps, atol=1e-4, rtol=0)


def test_files_of_rgb_stay_as_earlier_versions_read_them(tmp_path: Path) -> None:
    explainer = Explainer(chain(3), SIZE, layers=LAYERS)
    values = json.loads(explainer.description.to_json())
    assert values["format"] == 2
    assert "channels" not in values["signature"] and "channels" not in values["preprocess"]
    assert Description.from_json(json.dumps(values)).signature == explainer.description.signature
    other = json.loads(Explainer(chain(4), SIZE, layers=LAYERS).description.to_json())
    assert other["format"] == 3 and other["signature"]["channels"] == 4
    with pytest.raises(ArtifactError, match=r"format <= 3, got 4, .*; update combicam"):
        Description.from_json(json.dumps({**other, "format": 4}))


@pytest.mark.parametrize("method", ["gradcam", "scorecam"])
def test_a_channel_without_weights_changes_nothing(method: str) -> None:
    narrow, wide = chain(3), chain(4)
    state = narrow.state_dict()
    state["0.weight"] = torch.cat([state["0.weight"], torch.zeros(6, 1, 3, 3)], 1)
    wide.load_state_dict(state)
    x = images(3, 4)
    made = [Explainer(m, SIZE, layers=LAYERS, method=method) for m in (narrow, wide)]
    rgb, four = made[0](x[:, :3]), made[1](x)
    torch.testing.assert_close(four.heatmaps, rgb.heatmaps, atol=1e-5, rtol=0)
    torch.testing.assert_close(made[1].score_network(x), rgb.logits, atol=1e-5, rtol=0)
    assert made[1].layers == made[0].layers


def test_pickles_sizes_and_precisions() -> None:
    explainer = Explainer(chain(4), SIZE, layers=LAYERS)
    x = images(3, 4)
    again = pickle.loads(pickle.dumps(explainer))
    assert again.channels == 4 and torch.equal(again(x).heatmaps, explainer(x).heatmaps)
    loose = Preprocess(SIZE, resize="short-side", channels=4)
    assert Explainer(chain(4), layers=LAYERS, preprocess=loose)(
        torch.randn(2, 4, 16, 40)
    ).heatmaps.shape == (2, 1, 16, 40)
    half = Explainer(chain(4), SIZE, layers=LAYERS, dtype="bfloat16")(x)
    assert (half.heatmaps - explainer(x).heatmaps).abs().mean() < 0.05


def test_what_is_said_wins_over_what_is_found() -> None:
    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = chain(1)

        def forward(self, images: Tensor) -> Tensor:
            return self.network(images.mean(1, keepdim=True))

    layers = ("network.1",)
    assert Explainer(Mean(), SIZE, layers=layers).channels == 3
    assert Explainer(Mean(), SIZE, layers=layers, channels=7).channels == 7
    loaded = LoadedModel(Mean(), Preprocess(SIZE, channels=5), "mean")
    explainer = Explainer(loaded, layers=layers)
    x = images(2, 5)
    grey = Explainer(chain(1), SIZE, layers=("1",))(x.mean(1, keepdim=True))
    torch.testing.assert_close(explainer(x).heatmaps, grey.heatmaps, atol=1e-5, rtol=0)


def test_a_network_of_several_outputs_tells_its_channels() -> None:
    class Several(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = chain(4)

        def forward(self, images: Tensor, scale: float) -> dict[str, Tensor]:
            return {"a": self.network(scale * images), "b": images.mean((2, 3))}

    several = Explainer(Several(), SIZE, layers=("network.1",), output="a", inputs={"scale": 2.0})
    x = images(2, 4)
    plain = Explainer(chain(4), SIZE, layers=("1",))
    assert several.channels == 4
    torch.testing.assert_close(several(x).heatmaps, plain(2 * x).heatmaps, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"channels": 0}, ValueError, "expected channels as an int >= 1 or None, got 0"),
        ({"channels": True}, ValueError, "expected channels as an int >= 1 or None, got True"),
        ({"channels": 3}, TraceError, r"does not run on images of shape \(1, 3, 16, 24\).*Prepro"),
        ({"preprocess": Preprocess(SIZE)}, TraceError, r"another C is given by Preprocess\(chann"),
        (
            {"preprocess": Preprocess(SIZE), "channels": 1},
            ValueError,
            r"expected channels=3, those of the preprocessing, got 1; .* Preprocess\(..., channels",
        ),
    ],
)
def test_wrong_channels_are_refused(
    arguments: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        Explainer(chain(1), SIZE, layers=LAYERS, **arguments)


def test_channels_that_fold_into_the_batch_are_refused() -> None:
    class Folds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = chain(1)

        def forward(self, images: Tensor) -> Tensor:
            return self.network(images.reshape(-1, 1, *SIZE))

    assert Explainer(Folds(), SIZE, layers=("network.1",)).channels == 1
    with pytest.raises(TraceError, match=r"got \(3, 5\) of \(1, 3, 16, 24\).*channels="):
        Explainer(Folds(), SIZE, layers=("network.1",), channels=3)


RGB = np.random.default_rng(0).integers(0, 256, (2, *SIZE, 3), np.uint8)
GREY = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in RGB])
PHOTOS = [Image.fromarray(image) for image in RGB]


@pytest.mark.parametrize(
    "given",
    [
        GREY,
        GREY[..., None],
        GREY[:, None],
        torch.from_numpy(GREY),
        list(GREY),
        [image[..., None] for image in GREY],
        [Image.fromarray(image) for image in GREY],
        [Image.fromarray(image).convert("LA") for image in GREY],
        RGB,
        RGB.transpose(0, 3, 1, 2),
        torch.from_numpy(RGB),
        list(RGB),
        [RGB[0], GREY[1]],
        PHOTOS,
        [photo.convert("RGBA") for photo in PHOTOS],
    ],
)
def test_photos_for_a_grey_network(given: Any) -> None:
    found = image_tensor(given, 1)
    assert found.dtype == torch.uint8 and np.array_equal(found.numpy(), GREY[..., None])


@pytest.mark.parametrize("given", [GREY[..., None], GREY[:, None], list(GREY)])
def test_grey_photos_for_an_rgb_network(given: Any) -> None:
    assert np.array_equal(image_tensor(given).numpy(), np.repeat(GREY[..., None], 3, 3))


def test_transparency_is_white_as_in_runs() -> None:
    clear = PHOTOS[0].copy()
    clear.putalpha(0)
    for channels in (1, 3):
        assert bool((image_tensor(clear, channels) == 255).all())


FOUR = np.random.default_rng(1).integers(0, 256, (2, *SIZE, 4), np.uint8)


@pytest.mark.parametrize("given", [FOUR, FOUR.transpose(0, 3, 1, 2), list(FOUR)])
def test_bytes_of_other_channels(given: Any) -> None:
    assert np.array_equal(image_tensor(given, 4).numpy(), FOUR)


@pytest.mark.parametrize(
    ("given", "channels", "words"),
    [
        (FOUR, 3, r"uint8 \[B,H,W,3\] \(RGB\), got torch.uint8 \(2, 16, 24, 4\), perhaps with alp"),
        (FOUR, 1, r"uint8 \[B,H,W,1\] \(grey\), got .* pass images\[..., :3\]"),
        (PHOTOS, 4, r"got an image of PIL \(RGB\), which is a photo of 1 or 3 channels"),
        (FOUR[0], 4, r"got a single image \(16, 24, 4\); pass images\[None\]"),
        (GREY[0][..., None], 1, r"got a single image \(16, 24, 1\)"),
        (FOUR.astype(np.float32), 4, r"pass images.permute\(0, 3, 1, 2\)"),
    ],
)
def test_ambiguous_images_are_refused(given: Any, channels: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        image_tensor(given, channels)


def test_bytes_are_normalised_by_the_channels_of_the_preprocessing() -> None:
    mean, std = (0.1, 0.2, 0.3, 0.4), (0.5, 0.6, 0.7, 0.8)
    known = Explainer(chain(4), layers=LAYERS, preprocess=Preprocess(SIZE, mean, std))
    x = (FOUR / 255 - mean) / std
    floats = torch.from_numpy(x.transpose(0, 3, 1, 2)).float()
    torch.testing.assert_close(known(FOUR).heatmaps, known(floats).heatmaps, atol=1e-5, rtol=0)
    unknown = Explainer(chain(4), SIZE, layers=LAYERS)
    torch.testing.assert_close(unknown(floats).heatmaps, known(floats).heatmaps)
    with pytest.raises(ValueError, match=r"float \[B,4,H,W\] \(normalised\), got .*Preprocess wit"):
        unknown(FOUR)
    with pytest.raises(ValueError, match=r"float \[B,4,16,24\] \(normalised\), got torch.float32"):
        unknown(floats[:, :3])


def test_a_grey_network_explains_photos_and_draws_on_them() -> None:
    explainer = Explainer(chain(1), SIZE, layers=LAYERS)
    found = explainer(PHOTOS)
    assert torch.equal(found.heatmaps, explainer(GREY).heatmaps)
    mean, std = explainer.preprocess.mean[0], explainer.preprocess.std[0]
    floats = torch.from_numpy((GREY[:, None] / 255 - mean) / std).float()
    torch.testing.assert_close(explainer(floats).heatmaps, found.heatmaps, atol=1e-5, rtol=0)
    for shown in (PHOTOS, GREY[..., None], [Image.fromarray(image) for image in GREY]):
        pictures = found.overlay(shown)
        assert [picture.shape for picture in pictures] == 2 * [(1, *SIZE, 3)]
    assert "<img" in found.with_photos(GREY[..., None])._repr_html_()
