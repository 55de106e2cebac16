"""Five crops: where they are, what they say together, and their maps on the photo's pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision
from numpy.typing import NDArray
from torch import nn

from combicam import Explainer, LoadedModel, Preprocess
from combicam.engine.geo.five_crop import _crops, _merged, explain_five_crops

CROP = Preprocess((28, 28), resize="crop", crop_pct=28 / 32)


def photo(height: int, width: int) -> NDArray[np.uint8]:
    smooth = torch.rand(1, 3, 6, 8)
    grown = nn.functional.interpolate(smooth, (height, width), mode="bicubic").clamp(0, 1)
    return (255 * grown[0]).permute(1, 2, 0).round().byte().numpy()


class Spot(nn.Module):
    """Sees bright red where it is: its class 0 is how red the image is, pixel by pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.eyes = nn.Conv2d(3, 2, 1, bias=False)
        self.eyes.weight.data = torch.tensor([[1.0, 0, 0], [0, 1.0, 0]]).reshape(2, 3, 1, 1)
        self.act = nn.ReLU()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.act(self.eyes(images)).mean((2, 3))


@pytest.fixture(scope="module")
def spot() -> Explainer:
    plain = Preprocess((28, 28), (0, 0, 0), (1, 1, 1), resize="crop", crop_pct=28 / 32)
    return Explainer(LoadedModel(Spot(), plain, "spot"), layers=["act"], score="logit")


@pytest.fixture(scope="module")
def network() -> Explainer:
    torch.manual_seed(1)
    layers: list[nn.Module] = []
    for n, m in ((3, 8), (8, 8), (8, 16)):
        layers += [nn.Conv2d(n, m, 3, padding=1), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 7))
    return Explainer(LoadedModel(model, CROP, "chain"), targets=2)


@pytest.mark.parametrize("size", [(40, 60), (61, 44), (100, 101), (20, 33)])
def test_crops_are_torchvisions(size: tuple[int, int], network: Explainer) -> None:
    from PIL import Image

    pixels = photo(*size)
    crops, _, scaled = _crops(network, pixels)
    image = torchvision.transforms.functional.resize(Image.fromarray(pixels), 32)
    assert scaled == (image.height, image.width)
    theirs = torchvision.transforms.functional.five_crop(image, [28, 28])
    for ours, other in zip(crops, theirs, strict=True):
        assert np.abs(ours.astype(int) - np.asarray(other).astype(int)).max() <= 1


def test_probabilities_are_combined(network: Explainer) -> None:
    pixels = photo(40, 60)
    crops, _, _ = _crops(network, pixels)
    each = network(torch.from_numpy(crops)).logits.softmax(1)
    for combine, expected in (("max", each.amax(0)), ("mean", each.mean(0))):
        found = explain_five_crops(network, pixels, combine=combine)
        torch.testing.assert_close(found.probabilities, expected)
        best = expected.topk(2)
        assert torch.equal(found.targets, best.indices)
        torch.testing.assert_close(found.scores, best.values)
        assert found.crops.targets.tolist() == [best.indices.tolist()] * 5


def test_a_map_of_pixels_is_the_photos_own(spot: Explainer) -> None:
    # Every crop's map is the red of its pixels times one number: so is the photo's.
    pixels = photo(64, 96)
    found = explain_five_crops(spot, pixels, targets=[0])
    assert found.heatmaps.shape == (1, 64, 96) and found.covered.all() and not found.flat.any()
    red = nn.functional.interpolate(
        torch.from_numpy(pixels)[None, None, ..., 0].float(), (32, 48), mode="bilinear",
        antialias=True,
    )  # fmt: skip
    red = nn.functional.interpolate(red, (64, 96), mode="bilinear")[0, 0]
    red = (red - red.min()) / (red.max() - red.min())
    assert (found.heatmaps[0] - red).abs().max() < 0.02
    assert float(found.heatmaps.min()) == 0 and float(found.heatmaps.max()) == 1


@pytest.mark.parametrize("changes", [{}, {"normalize": "none"}, {"fuse": "mean"}])
def test_maps_are_averaged_before_they_are_normalised(changes: dict[str, str]) -> None:
    # A crop without red has a map of zeros; min-max by itself would not show how dark it is.
    plain = Preprocess((28, 28), (0, 0, 0), (1, 1, 1), resize="crop", crop_pct=28 / 32)
    explainer = Explainer(
        LoadedModel(Spot(), plain, "spot"), layers=["act"], score="logit", **changes
    )
    pixels = np.zeros((32, 96, 3), np.uint8)
    pixels[8:12, 4:8, 0] = 255  # strong on the left
    pixels[8:12, 88:92, 0] = 51  # weak on the right
    found = explain_five_crops(explainer, pixels, targets=[0]).heatmaps[0]
    assert float(found[9, 5]) == pytest.approx(1, abs=1e-5)
    assert float(found[9, 89]) == pytest.approx(0.2, abs=1e-5)


def test_a_long_photo_has_strips_that_no_crop_shows(spot: Explainer) -> None:
    found = explain_five_crops(spot, photo(32, 96), targets=[1])
    # The corners reach to column 28 and from 68 on; the centre shows 34 to 62 of rows 2 to 30.
    expected = torch.zeros(32, 96, dtype=torch.bool)
    expected[:, :28] = expected[:, 68:] = True
    expected[2:30, 34:62] = True
    assert torch.equal(found.covered, expected)
    assert not found.heatmaps[0][~expected].any()


def test_flat_maps_are_flagged(spot: Explainer) -> None:
    found = explain_five_crops(spot, np.full((40, 40, 3), 128, np.uint8), targets=[0, 1])
    assert found.flat.tolist() == [True, True] and not found.heatmaps.any()


def test_overlaps() -> None:
    maps = torch.stack([torch.full((1, 2, 2), float(i + 1)) for i in range(3)])
    sums, counts = _merged(maps, [(0, 0), (0, 1), (1, 1)], (3, 3))
    assert sums[0].tolist() == [[1, 3, 2], [1, 6, 5], [0, 3, 3]]
    assert counts.tolist() == [[1, 2, 1], [1, 3, 2], [0, 1, 1]]


def test_what_cannot_be(network: Explainer, spot: Explainer) -> None:
    pixels = photo(40, 40)
    with pytest.raises(ValueError, match="combine in"):
        explain_five_crops(network, pixels, combine="sum")
    with pytest.raises(ValueError, match=r"uint8 \[h,w,3\], got float64"):
        explain_five_crops(network, pixels / 255)
    with pytest.raises(ValueError, match="got 7"):
        explain_five_crops(network, pixels, targets=[7])
    with pytest.raises(ValueError, match="at least 0"):
        explain_five_crops(network, pixels, targets=[-1])
    squashed = Preprocess((28, 28), resize="squash")
    with pytest.raises(ValueError, match="got 'squash'"):
        explain_five_crops(Explainer(LoadedModel(Spot(), squashed, "s"), layers=["act"]), pixels)
    loose = Explainer(LoadedModel(Spot(), CROP, "s"), layers=["act"], fuse="none")
    with pytest.raises(ValueError, match="fuse='none'"):
        explain_five_crops(loose, pixels)
