"""How many channels a preprocessing has, and what it normalises them by."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from combicam import Preprocess
from combicam.export.preprocess import IMAGENET_MEAN, IMAGENET_STD

SIZE = (4, 6)


def test_defaults_are_imagenets_for_rgb_their_average_for_grey_and_none_for_others() -> None:
    rgb = Preprocess(SIZE)
    assert (rgb.channels, rgb.mean, rgb.std) == (3, IMAGENET_MEAN, IMAGENET_STD)
    grey = Preprocess(SIZE, channels=1)
    assert grey.mean == pytest.approx((0.449,)) and grey.std == pytest.approx((0.226,))
    other = Preprocess(SIZE, channels=12)
    assert (other.mean, other.std) == ((), ()) and not other.takes_bytes
    assert [p.takes_photos for p in (rgb, grey, other)] == [True, True, False]


def test_mean_tells_the_channels() -> None:
    four = Preprocess(SIZE, mean=(0.1, 0.2, 0.3, 0.4), std=(1, 1, 1, 2))
    assert four.channels == 4 and four.takes_bytes and not four.takes_photos
    assert replace(four, resize="squash").channels == 4


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"channels": 1, "mean": (0, 0, 0)}, "expected 1 values of mean, one per channel"),
        ({"mean": (0.5,) * 4}, r"expected 4 values of std, one per channel, got \(\)"),
        ({"std": (0.5,) * 4}, r"expected 4 values of mean, one per channel, got \(\)"),
        ({"mean": (0.5,), "std": (1, 1, 1)}, "expected 1 values of std"),
        ({"channels": -1}, "expected channels as an int >= 1, got -1"),
        ({"channels": True}, "expected channels as an int >= 1, got True"),
        ({"channels": 1.0}, "expected channels as an int >= 1, got 1.0"),
        ({"mean": (0.5,), "std": (0,)}, "expected std > 0"),
    ],
)
def test_what_does_not_fit_is_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Preprocess(SIZE, **values)


@pytest.mark.parametrize("values", [{}, {"channels": 1}, {"channels": 12}, {"mean": (0.5,) * 4}])
def test_it_survives_json(values: dict[str, Any]) -> None:
    std = {"std": (0.25,) * 4} if "mean" in values else {}
    preprocess = Preprocess(SIZE, **values, **std)
    assert Preprocess.from_dict(json.loads(json.dumps(preprocess.to_dict()))) == preprocess


def test_of_rgb_the_fields_are_those_of_earlier_versions() -> None:
    assert "channels" not in Preprocess(SIZE).to_dict()  # runs and artifacts are compared by them


@pytest.mark.parametrize("count", [1, 4])
def test_bytes_are_normalised_channel_by_channel(count: int) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (2, *SIZE, count), np.uint8)
    mean, std = rng.uniform(0.2, 0.8, count), rng.uniform(0.1, 0.5, count)
    found = Preprocess(SIZE, tuple(mean), tuple(std)).normalize(torch.from_numpy(pixels))
    expected = ((pixels / 255 - mean) / std).transpose(0, 3, 1, 2)
    assert found.shape == (2, count, *SIZE) and found.is_contiguous()
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


def test_bytes_without_mean_and_deviation_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected mean and std of 12 channels.*float \[B,12,H,W"):
        Preprocess(SIZE, channels=12).normalize(torch.zeros(1, *SIZE, 12, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"normalize: expected uint8 \[B,H,W,1\]"):
        Preprocess(SIZE, channels=1).normalize(torch.zeros(1, *SIZE, 3, dtype=torch.uint8))


def test_photos_are_for_one_channel_or_three() -> None:
    Preprocess(SIZE, channels=1).check_photos("run")
    with pytest.raises(ValueError, match=r"run: expected a network of 1 channel .* got one of 5"):
        Preprocess(SIZE, channels=5).check_photos("run")


def test_in_colour_only_the_channels_change() -> None:
    grey = Preprocess(SIZE, (0.5,), (0.5,), resize="squash", interpolation="bicubic")
    colour = grey.in_colour()
    assert colour == Preprocess(SIZE, resize="squash", interpolation="bicubic")
    assert colour.in_colour() is colour
