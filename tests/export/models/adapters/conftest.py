"""Checkpoints with the published names and shapes, on networks small enough for tests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

sys.path.insert(0, str(Path(__file__).parent))  # for adapter_files

from adapter_files import mixture, settled

from combicam.export.models.adapters.efficientnet import EfficientNet


@pytest.fixture(scope="session")
def resnet() -> nn.Module:
    """torchvision's ResNet with a block in each row."""
    torch.manual_seed(0)
    return settled(ResNet(BasicBlock, [1, 1, 1, 1]))


@pytest.fixture(scope="session")
def backbone() -> EfficientNet:
    """EfficientNet-B4 in full."""
    torch.manual_seed(0)
    network = settled(EfficientNet(), size=48, images=4)
    assert isinstance(network, EfficientNet)
    return network


@pytest.fixture(scope="session")
def certh_folder(backbone: EfficientNet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The three published files, with 50 cells."""
    folder = tmp_path_factory.mktemp("certh")
    classifier = {"_fc.weight": torch.zeros(1000, 1792), "_fc.bias": torch.zeros(1000)}
    torch.save({**backbone.state_dict(), **classifier}, folder / "efficientnet_backbone.pt")
    torch.manual_seed(1)
    torch.save(mixture(50), folder / "mvmf_head.pt")
    return folder
