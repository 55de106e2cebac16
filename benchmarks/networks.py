"""The networks that are timed: torchvision's, at one size each."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torchvision
from torch import nn

from combicam.engine.explain.artifact_export import natural_noise


@dataclass(frozen=True)
class Case:
    """One network at one size.

    Attributes:
        name: of the case.
        model: in ``torchvision.models``.
        size: (H, W), pixels.
        layers: as in ``CamSpec``.
    """

    name: str
    model: str
    size: tuple[int, int]
    layers: str


CASES = {
    "resnet50": Case("resnet50", "resnet50", (224, 224), "stages"),
    "efficientnet_b4": Case("efficientnet_b4", "efficientnet_b4", (300, 300), "blocks"),
    "resnet18-tiny": Case("resnet18-tiny", "resnet18", (64, 64), "stages"),
}

NAMES = {"resnet50": "ResNet-50", "efficientnet_b4": "EfficientNet-B4"}


def network(case: Case) -> nn.Module:
    """Random weights whose normalisations fit their activations (no denormal numbers)."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(case.model, weights=None)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
    model.train()
    with torch.no_grad():
        model(natural_noise(8, case.size, seed=1))
    return model.eval()
