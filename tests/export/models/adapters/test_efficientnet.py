"""EfficientNet-B4 of that package: its names, its padding, the numbers of an independent one."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torchvision
from torch import nn

from combicam.export.models.adapters.efficientnet import EfficientNet, _padding
from combicam.export.trace.layers import select_layers
from combicam.export.trace.probe import probe


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "pixels"),
    # By hand: total = (ceil(size / stride) - 1) * stride + kernel - size, and its larger half.
    [(380, 3, 2, 1), (190, 3, 1, 1), (190, 3, 2, 1), (95, 5, 2, 2), (48, 3, 2, 1), (24, 5, 2, 2),
     (24, 5, 1, 2), (12, 1, 1, 0), (224, 5, 2, 2), (225, 3, 2, 1), (7, 1, 2, 0)],
)  # fmt: skip
def test_padding(size: int, kernel: int, stride: int, pixels: int) -> None:
    assert _padding(size, kernel, stride) == pixels


def test_names_and_shapes_are_the_packages(backbone: EfficientNet) -> None:
    state = backbone.state_dict()
    shapes = {
        "_conv_stem.weight": (48, 3, 3, 3),
        "_bn0.running_var": (48,),
        "_blocks.0._depthwise_conv.weight": (48, 1, 3, 3),
        "_blocks.0._se_reduce.weight": (12, 48, 1, 1),
        "_blocks.2._expand_conv.weight": (144, 24, 1, 1),
        "_blocks.2._se_expand.bias": (144,),
        "_blocks.6._depthwise_conv.weight": (192, 1, 5, 5),
        "_blocks.22._bn1.weight": (960,),
        "_blocks.31._project_conv.weight": (448, 2688, 1, 1),
        "_blocks.31._bn2.bias": (448,),
        "_conv_head.weight": (1792, 448, 1, 1),
        "_bn1.running_mean": (1792,),
    }
    assert {key: tuple(state[key].shape) for key in shapes} == shapes
    # Blocks 0 and 1 do not expand; the package counts 17,548,616 parameters without _fc.
    assert not any(key.startswith(("_blocks.0._expand", "_blocks.1._bn0")) for key in state)
    assert sum(p.numel() for p in backbone.parameters()) == 17_548_616


@pytest.mark.parametrize("size", [(45, 32), pytest.param((75, 98), marks=pytest.mark.slow)])
def test_numbers_are_those_of_another_implementation(
    size: tuple[int, int], backbone: EfficientNet
) -> None:
    # For 380 pixels the paddings come out as torchvision's; its weights are in the same order.
    norm = partial(nn.BatchNorm2d, eps=1e-3)
    peer = torchvision.models.efficientnet_b4(weights=None, norm_layer=norm).eval()
    own = list(backbone.state_dict().values())
    names = [key for key in peer.state_dict() if not key.startswith("classifier")]
    assert len(own) == len(names)
    peer.load_state_dict(dict(zip(names, own, strict=True)), strict=False)
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        expected = peer.avgpool(peer.features(images)).flatten(1)
        found = backbone(images)
    assert expected.std() > 0.05
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-4)


def test_all_32_blocks_are_explained(backbone: EfficientNet) -> None:
    layers = select_layers(backbone, probe(backbone, (150, 200)), "blocks")
    assert [info.name for info in layers] == [f"_blocks.{i}" for i in range(32)]
    grids = dict.fromkeys((info.height, info.width) for info in layers)
    assert list(grids) == [(75, 100), (38, 50), (19, 25), (10, 13), (5, 7)]
