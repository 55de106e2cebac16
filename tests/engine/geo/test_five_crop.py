"""Five crops: where they are, what they say together, and their maps on the photo's pixels."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from numpy.typing import NDArray
from torch import Tensor, nn

from combicam import Explainer, LoadedModel, Preprocess
from combicam.engine.explain.explanation import Explanation
from combicam.engine.geo.five_crop import FiveCropExplainer, crop_corners, explain_five_crops
from combicam.engine.images.resize import resize

CROP = Preprocess((28, 28), resize="crop", crop_pct=28 / 32)


def photo(height: int, width: int) -> NDArray[np.uint8]:
    smooth = torch.rand(1, 3, 6, 8)
    grown = nn.functional.interpolate(smooth, (height, width), mode="bicubic").clamp(0, 1)
    return (255 * grown[0]).permute(1, 2, 0).round().byte().numpy()


def scaled(pixels: NDArray[np.uint8], explainer: Explainer) -> NDArray[np.uint8]:
    size = (pixels.shape[1], pixels.shape[0])
    return resize(np.array(pixels), 1, size, FiveCropExplainer(explainer).preprocess)


def crops_of(scaled: NDArray[np.uint8], explainer: Explainer) -> NDArray[np.uint8]:
    h, w = explainer.input_size
    corners = crop_corners((scaled.shape[0], scaled.shape[1]), (h, w))
    return np.stack([scaled[y : y + h, x : x + w] for y, x in corners])


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
def chain() -> nn.Module:
    torch.manual_seed(1)
    layers: list[nn.Module] = []
    for n, m in ((3, 8), (8, 8), (8, 16)):
        layers += [nn.Conv2d(n, m, 3, padding=1), nn.ReLU()]
    head = nn.Linear(16, 7)
    head.weight.data *= 20  # crops differ
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)


@pytest.fixture(scope="module")
def network(chain: nn.Module) -> Explainer:
    return Explainer(LoadedModel(chain, CROP, "chain"), targets=2)


@pytest.mark.parametrize("size", [(40, 60), (61, 44), (100, 101), (20, 33)])
def test_crops_are_torchvisions(size: tuple[int, int], network: Explainer) -> None:
    from PIL import Image

    pixels = photo(*size)
    ours_scaled = scaled(pixels, network)
    image = torchvision.transforms.functional.resize(Image.fromarray(pixels), 32)
    assert ours_scaled.shape == (image.height, image.width, 3)
    theirs = torchvision.transforms.functional.five_crop(image, [28, 28])
    for ours, other in zip(crops_of(ours_scaled, network), theirs, strict=True):
        assert np.abs(ours.astype(int) - np.asarray(other).astype(int)).max() <= 1


def test_probabilities_are_combined(network: Explainer) -> None:
    pixels = photo(40, 60)
    crops = torch.from_numpy(crops_of(scaled(pixels, network), network))
    each = network(crops).logits.softmax(1)
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


def raw_by_hand(found: Explanation, corners: list[tuple[int, int]], size: tuple[int, int]) -> Any:
    """Mean of the crops' maps before normalisation, float64 [K,h,w], NaN where no crop is."""
    low, high = (found.ranges[..., i].double().numpy()[..., None, None] for i in (0, 1))
    maps = low + found.heatmaps.double().numpy() * (high - low)
    merged = np.full((maps.shape[1], *size), np.nan)
    for row, column in np.ndindex(size):
        here = [
            crop[:, row - y, column - x]
            for crop, (y, x) in zip(maps, corners, strict=True)
            if 0 <= row - y < maps.shape[2] and 0 <= column - x < maps.shape[3]
        ]
        if here:
            merged[:, row, column] = np.mean(here, 0)
    return merged


@pytest.mark.parametrize("method", ["gradcam", "scorecam"])
@pytest.mark.parametrize("size", [(32, 45), (70, 32), (32, 32)])
def test_maps_by_hand(size: tuple[int, int], method: str, chain: nn.Module) -> None:
    explainer = Explainer(LoadedModel(chain, CROP, "chain"), targets=2, method=method)
    photos = np.stack([photo(*size) for _ in range(3)])
    found = FiveCropExplainer(explainer)(photos)
    assert found.heatmaps.shape == (3, 2, *size)
    corners = crop_corners(size, (28, 28))
    for b, pixels in enumerate(photos):
        crops = torch.from_numpy(crops_of(pixels, explainer))
        each = explainer(crops, targets=found.targets[b].expand(5, -1))
        raw = raw_by_hand(each, corners, size)
        low, high = np.nanmin(raw, (1, 2)), np.nanmax(raw, (1, 2))
        np.testing.assert_allclose(found.ranges[b].T.numpy(), [low, high], rtol=1e-4, atol=1e-7)
        expected = np.nan_to_num((raw - low[:, None, None]) / (high - low)[:, None, None])
        np.testing.assert_allclose(found.heatmaps[b].numpy(), expected, atol=1e-4)
    assert not found.flat.any()


@pytest.mark.parametrize("combine", ["max", "mean"])
def test_scores_by_hand(combine: str, network: Explainer, chain: nn.Module) -> None:
    photos = np.stack([photo(32, 45) for _ in range(4)])
    crops = np.concatenate([crops_of(pixels, network) for pixels in photos])
    normal = (crops / 255 - np.array(CROP.mean)) / np.array(CROP.std)
    exact = copy.deepcopy(chain).double()(torch.from_numpy(normal).permute(0, 3, 1, 2))
    each = exact.detach().softmax(1).unflatten(0, (4, 5))  # [4,5,7]

    def combined(p: Tensor) -> Tensor:
        return p.amax(1) if combine == "max" else p.mean(1)

    def close(ours: Tensor, theirs: Tensor) -> None:
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-6)

    five = FiveCropExplainer(network, combine)
    found = five(photos)
    best = combined(each).topk(2)
    assert torch.equal(found.targets, best.indices)
    close(found.scores, best.values)
    close(found.logits.exp(), combined(each) / combined(each).sum(1, keepdim=True))
    ids = torch.tensor([[3, 0]] * 4)
    close(five(photos, targets=ids).scores, combined(each)[:, [3, 0]])
    # The best class beside a named one.
    mixed = five(photos, targets=torch.tensor([[-1, 5]] * 4))
    assert torch.equal(mixed.targets, torch.stack([best.indices[:, 0], torch.full((4,), 5)], 1))
    close(mixed.scores, torch.stack([best.values[:, 0], combined(each)[:, 5]], 1))
    ranked = five(photos, targets=torch.tensor([[4, -1]] * 2 + [[-3, -2]] * 2))
    order = combined(each).sort(1, descending=True).indices
    assert ranked.targets[:2].tolist() == [[4, int(first)] for first in order[:2, 0]]
    assert torch.equal(ranked.targets[2:], order[2:, [2, 1]])
    region = torch.tensor([0, 1.0, 0, 0.5, 0, 0, 1])
    against = torch.tensor([0, 1.0, 1, 0, 0, -1, 0])
    asked = five(photos, targets=torch.stack([region, against]).expand(4, -1, -1))
    of_region = combined((each * region.double()).sum(2, keepdim=True))
    of_contrast = combined(each[..., 1:3].sum(2, keepdim=True)) - combined(each[..., 5:6])
    close(asked.scores, torch.cat([of_region, of_contrast], 1))
    assert (asked.targets == -1).all()


def test_crops_that_coincide_are_the_image(chain: nn.Module) -> None:
    whole = Preprocess((28, 28), resize="crop", crop_pct=1)
    explainer = Explainer(LoadedModel(chain, whole, "chain"), targets=2)
    photos = np.stack([photo(28, 28) for _ in range(3)])
    one = explainer(photos)
    for combine in ("max", "mean"):
        five = FiveCropExplainer(explainer, combine)(photos)
        assert torch.equal(five.targets, one.targets)
        for name in ("scores", "ranges", "heatmaps"):
            torch.testing.assert_close(
                getattr(five, name), getattr(one, name), rtol=1e-4, atol=1e-5
            )
        torch.testing.assert_close(five.logits, one.logits.log_softmax(1), rtol=1e-4, atol=1e-5)


def test_a_divisor_is_taken_back() -> None:
    # What the spec adds to the divisor must not change how bright the crops are to each other.
    plain = Preprocess((28, 28), (0, 0, 0), (1, 1, 1), resize="crop", crop_pct=28 / 32)
    pixels = photo(32, 60)
    exact, added = (
        explain_five_crops(
            Explainer(LoadedModel(Spot(), plain, "s"), layers=["act"], score="logit", eps=eps),
            pixels,
            targets=[0],
        ).heatmaps
        for eps in (0.0, 0.5)
    )
    torch.testing.assert_close(added, exact, rtol=0, atol=1e-4)


class Certain(nn.Module):
    """Three classes, two of which have probabilities that float32 rounds to 0."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        red = self.act(images).mean((2, 3))[:, :1]
        return torch.cat([500 + red, 100 * red, 200 * red], 1)


def test_classes_of_no_probability_keep_their_order() -> None:
    plain = Preprocess((28, 28), (0, 0, 0), (1, 1, 1), resize="crop", crop_pct=28 / 32)
    explainer = Explainer(LoadedModel(Certain(), plain, "c"), layers=["act"], targets=3)
    for combine in ("max", "mean"):
        found = FiveCropExplainer(explainer, combine)(np.full((1, 32, 32, 3), 200, np.uint8))
        assert found.targets.tolist() == [[0, 2, 1]] and found.scores[0, 1:].tolist() == [0, 0]
        assert found.logits.isfinite().all() and found.logits[0, 2] > found.logits[0, 1]


def test_what_cannot_be(network: Explainer, spot: Explainer) -> None:
    pixels = photo(40, 40)
    with pytest.raises(ValueError, match="combine in"):
        explain_five_crops(network, pixels, combine="sum")
    with pytest.raises(ValueError, match=r"uint8 \[h,w,3\] or \[h,w,1\], got float64"):
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
    with pytest.raises(ValueError, match=r"uint8 \[B,h,w,3\] \(RGB\), at least 28x28, got .*27"):
        FiveCropExplainer(network)(np.zeros((1, 27, 40, 3), np.uint8))
    with pytest.raises(ValueError, match="got 'cover', which scales images for five"):
        Explainer(LoadedModel(Spot(), FiveCropExplainer(spot).preprocess, "s"), layers=["act"])
