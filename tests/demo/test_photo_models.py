"""Networks trained on photographs: what they are, and their maps against float64."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable

import pytest
import torch
from cam_oracle import assert_rounding_only, combi_cam
from torch import Tensor

from combicam import Explainer
from combicam.demo import photo_models
from combicam.errors import MissingExtra


@pytest.mark.parametrize(("number", "side"), [(0, 224), (1, 240), (2, 260)])
def test_networks_know_their_size_and_classes(number: int, side: int) -> None:
    loaded = getattr(photo_models, f"lite{number}")()
    assert loaded.preprocess.input_size == (side, side) and not loaded.module.training
    assert loaded.classes is not None and len(loaded.classes) == 1000
    assert loaded.classes.names[1] == "goldfish" and loaded.classes.names[999] == "toilet tissue"
    with torch.no_grad():
        assert loaded.module(torch.zeros(1, 3, side, side)).shape == (1, 1000)


@pytest.mark.long
def test_maps_of_trained_weights_against_float64(postcards: Callable[[int, int], Tensor]) -> None:
    loaded = photo_models.lite0()
    explainer = Explainer(loaded, (96, 96), layers="stages", fuse="gated", device="cpu")
    images = postcards(16, 700)[:, 32:128, 32:128].contiguous()
    found = explainer(images)
    inputs = loaded.preprocess.normalize(images).double()
    names = [info.name for info in explainer.layers]
    model = copy.deepcopy(loaded.module).double()
    target = found.targets[:, 0]
    expected = combi_cam(model, names, inputs, target, score="logprob", is_gated=True)
    assert_rounding_only((found.heatmaps[:, 0] - expected).abs().amax((1, 2)))


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(
        MissingExtra, match=r"EfficientNet-Lite1: .* pip install 'combicam\[photos\]"
    ):
        photo_models.lite1()
