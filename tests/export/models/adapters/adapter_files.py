"""The published names of weights, for checkpoints that tests write."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

POSITIONS = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}


def numbered(network: nn.Module) -> dict[str, Tensor]:
    """A ResNet's weights named by position among its children, as in a Sequential of them."""
    state = {}
    for key, value in network.state_dict().items():
        first, _, rest = key.partition(".")
        if first in POSITIONS:
            state[f"{POSITIONS[first]}.{rest}"] = value
    return state


def settled(network: nn.Module, size: int = 64, images: int = 8) -> nn.Module:
    """Normalisations that fit the activations, so that nothing vanishes."""
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
    network.train()
    with torch.no_grad():
        network(torch.randn(images, 3, size, size))
    return network.eval()


def tiny_trunk() -> nn.Module:
    """Images -> [B,64,h,w]: two blocks that are traced and exported in a moment."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 64, 3, 4, padding=1), *(BasicBlock(64, 64) for _ in range(2))
    ).eval()


def mixture(cells: int) -> dict[str, Tensor]:
    """The head's file, centres in degrees."""
    centres = torch.stack([torch.linspace(-60, 70, cells), torch.linspace(-179, 179, cells)])
    return {
        "mvmf.mus": centres.double(),
        "mvmf.kappas": torch.zeros(cells).double(),
        "mixture_weights.seq_model.0.weight": 0.05 * torch.randn(cells, 1792),
        "mixture_weights.seq_model.0.bias": torch.randn(cells),
    }
