"""How many channels a network takes, found by running it."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn

from combicam.export.trace.channels import input_channels
from combicam.export.trace.snapshot import snapshot

SIZE = (28, 28)


def chain(channels: int, *before: nn.Module) -> nn.Sequential:
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    return nn.Sequential(*before, nn.Conv2d(channels, 4, 3), nn.ReLU(), head)


class Around(nn.Module):
    """A network behind a function of the images."""

    def __init__(self, network: nn.Module, kind: str) -> None:
        super().__init__()
        self.head = nn.Conv2d(64, 5, 1)  # registered first, run by nobody
        self.network = network
        self.kind = kind

    def forward(self, images: Tensor) -> Tensor:
        if self.kind == "folds":
            images = images.reshape(-1, 1, *SIZE)
        if self.kind == "mean":
            images = images.mean(1, keepdim=True)
        if self.kind == "repeats":
            images = images.repeat(1, 3, 1, 1)
        if self.kind == "scales":
            images = (images - torch.zeros(7, 1, 1)) / torch.ones(7, 1, 1)
        return self.network(images)


@pytest.mark.parametrize(
    ("model", "count"),
    [
        (chain(3), 3),
        (chain(1), 1),
        (chain(12), 12),
        (chain(12, nn.BatchNorm2d(12)), 12),
        (chain(4, nn.Conv2d(4, 4, 3, groups=4)), 4),
        (chain(6, nn.GroupNorm(2, 6)), 6),
        (Around(chain(5), "as it is"), 5),
        (Around(chain(1), "folds"), 1),  # three channels would be three images
        (Around(chain(1), "mean"), 3),  # runs on RGB, and did so before
        (Around(chain(3), "repeats"), 1),
        (Around(chain(7), "scales"), 7),
        (nn.Sequential(nn.Flatten(), nn.Linear(3 * 28 * 28, 5)), 3),
        (nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, 5)), 1),
        (nn.Sequential(nn.Flatten(), nn.Linear(77, 5)), 3),  # runs on nothing
    ],
)
def test_small_networks(model: nn.Module, count: int) -> None:
    assert input_channels(snapshot(model), SIZE) == count


@pytest.mark.parametrize(
    ("name", "count"),
    [("resnet18", 4), ("vit_tiny_patch16_224", 1), ("swin_tiny_patch4_window7_224", 13)],
)
def test_networks_of_timm(name: str, count: int) -> None:
    model = timm.create_model(name, in_chans=count)
    assert input_channels(snapshot(model), (224, 224)) == count


def test_the_network_keeps_nothing_of_it() -> None:
    model = chain(12).eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    input_channels(model, SIZE)
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model(torch.zeros(2, 12, *SIZE)).shape == (2, 5)
