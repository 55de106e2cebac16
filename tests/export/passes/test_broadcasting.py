"""Gradients of a mean are one number per channel: every activation's backward takes them so."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cam_oracle import combi_cam
from torch import Tensor, nn

from combicam import Explainer, export

ACTIVATIONS = [
    *(nn.ReLU(), nn.SiLU(), nn.GELU(), nn.GELU("tanh"), nn.Hardswish(), nn.Hardsigmoid()),
    *(nn.Hardtanh(), nn.ReLU6(), nn.LeakyReLU(), nn.ELU(), nn.CELU(), nn.SELU(), nn.Sigmoid()),
    *(nn.Tanh(), nn.Mish(), nn.Softplus(), nn.Softsign(), nn.LogSigmoid(), nn.Tanhshrink()),
]
SIZE = (12, 16)


class Branches(nn.Module):
    """convolution, activation, convolution, activation, mean: one branch an activation."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)

        def block(activation: nn.Module, channels: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(channels, 8, 3), activation)

        self.low = nn.ModuleList(block(activation, 3) for activation in ACTIVATIONS)
        self.high = nn.ModuleList(block(activation, 8) for activation in ACTIVATIONS)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        pooled = [high(low(x)).mean((2, 3)) for low, high in zip(self.low, self.high, strict=True)]
        logits: Tensor = self.head(torch.stack(pooled).sum(0))
        return logits


@pytest.mark.long
@pytest.mark.parametrize("last", [False, True])
def test_every_activation_in_front_of_a_mean(last: bool, tmp_path: Path) -> None:
    model = Branches().eval()
    names = [f"{part}.{i}" for part in ("low", "high") for i in range(len(ACTIVATIONS))]
    images = torch.randn(3, 3, *SIZE)
    layout = torch.channels_last if last else torch.contiguous_format
    explainer = Explainer(model.to(memory_format=layout), SIZE, layers=names)
    found = explainer(images.contiguous(memory_format=layout))
    expected = combi_cam(model.double(), names, images.double(), found.targets[:, 0])
    model.float()
    assert (found.heatmaps[:, 0] - expected).abs().max() < 1e-4
    path = tmp_path / "branches.ts"
    export(explainer, path, verify=False)
    other = Explainer.load(path)(images, found.targets)
    assert (other.heatmaps - found.heatmaps).abs().max() < 1e-4
