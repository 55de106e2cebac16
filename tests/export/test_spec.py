"""CamSpec: its choices, its presets, its JSON."""

from __future__ import annotations

from typing import Any

import pytest

from combicam import CamSpec
from combicam.export.spec import PRESETS


@pytest.mark.parametrize(
    "spec",
    [
        CamSpec(),
        CamSpec(layers=("layer1.*", "layer4.2"), method="gradcam++", targets=5),
        CamSpec(layer_weights=(0.5, 1.0), fuse="mean", normalize="layer+map", eps=1e-8),
        CamSpec.preset("pytorch-grad-cam", layers="stages"),
    ],
)
def test_json_round_trip(spec: CamSpec) -> None:
    assert CamSpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "scorecam2"},
        {"score": "softmax"},
        {"fuse": "median"},
        {"normalize": "minmax"},
        {"targets": 0},
        {"targets": True},
        {"eps": -1.0},
    ],
)
def test_values_outside_of_the_choices(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        CamSpec(**changes)


@pytest.mark.parametrize("layers", [(), (1, 2)])
def test_layers_that_are_no_names(layers: Any) -> None:
    with pytest.raises(TypeError, match="layers"):
        CamSpec(layers=layers)


def test_one_name_is_a_selection_of_one() -> None:
    assert CamSpec(layers="layer4.2").layers == ("layer4.2",)
    assert CamSpec(layers="stages").layers == "stages"


def test_fields_of_a_newer_version_are_refused() -> None:
    with pytest.raises(ValueError, match="temperature"):
        CamSpec.from_dict({"temperature": 1})


def test_presets_are_specs_and_unknown_ones_are_named() -> None:
    for name in PRESETS:
        assert CamSpec.preset(name).unit_range
    with pytest.raises(ValueError, match="torchcam"):
        CamSpec.preset("captum")


def test_unit_range() -> None:
    assert not CamSpec(normalize="none").unit_range
    assert not CamSpec(fuse="sum", normalize="layer").unit_range
    assert CamSpec(fuse="max", normalize="layer").unit_range
    assert CamSpec(fuse="gated", normalize="none", layer_weights=(2.0,)).unit_range
    assert not CamSpec(fuse="max", normalize="layer", layer_weights=(2.0,)).unit_range
