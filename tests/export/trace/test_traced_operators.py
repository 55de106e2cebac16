"""Operators that are rewritten while tracing: equal to torch's own, and free in the batch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cam_oracle import calibrated, combi_cam
from torch import Tensor, nn

from combicam.export.spec import CamSpec
from combicam.export.trace.snapshot import snapshot
from combicam.export.trace.trace import trace
from combicam.export.trace.traced_operators import PlainOperators

SIZE = (24, 32)


class Plain(nn.Module):
    """A constant pad around a layer, a broadcast addcmul as ConvNeXt v2's, a global pool."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3)
        self.second = nn.Conv2d(6, 6, 2, 2)
        self.weight = nn.Parameter(torch.rand(6, 1, 1) + 0.5)
        self.bias = nn.Parameter(torch.rand(6, 1, 1))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(self.first(x).relu(), (0, 1, 2, 0), value=0.5)
        norm = x.square().mean((2, 3), keepdim=True)
        x = x + torch.addcmul(self.bias, self.weight, x * norm)
        logits: Tensor = self.head(self.pool(self.second(F.pad(x, (1, 1)))).flatten(1))
        return logits


def test_maps_are_those_of_autograd_at_any_batch() -> None:
    model = calibrated(Plain(), SIZE).double()
    layers = ["first", "second"]
    joint = trace(snapshot(model), CamSpec(layers=tuple(layers), method="elementwise"), SIZE)
    for batch in (1, 4):
        images = torch.randn(batch, 3, *SIZE)
        _, classes, _, heatmaps, _ = joint.module(images, torch.full((batch, 1), -1))
        expected = combi_cam(model, layers, images.double(), classes[:, 0], "elementwise")
        assert heatmaps.amax() == 1
        assert (heatmaps[:, 0] - expected).abs().max() < 1e-5


@pytest.mark.parametrize("pad", [(1, 2), (0, 3, 2, 0), (1, 1, 0, 0, 2, 0)])
@pytest.mark.parametrize("value", [None, -2.5])
def test_constant_pad_is_that_of_torch(pad: tuple[int, ...], value: float | None) -> None:
    x = torch.randn(2, 3, 4, 5)
    with PlainOperators():
        found = F.pad(x, pad, value=value)
    assert torch.equal(found, F.pad(x, pad, value=value))


def test_what_is_not_rewritten_stays_as_it_is() -> None:
    x = torch.randn(2, 3, 6, 6)
    for call in (
        lambda: F.pad(x, (-1, 2)),
        lambda: F.pad(x, (1, 1, 1, 1), mode="reflect"),
        lambda: F.pad(x, (0, 0, 0, 0, 0, 0, 1, 1)),
        lambda: F.adaptive_avg_pool2d(x, 2),
        lambda: torch.addcmul(x, x, x, value=2),
        lambda: F.adaptive_avg_pool2d(x, (1, 1)),
    ):
        with PlainOperators():
            found = call()
        torch.testing.assert_close(found, call())
