"""Rebuild the convolutional part of a torchvision model from the weights of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from combicam.errors import ModelError
from combicam.export.models.adapters.checkpoint import fill
from combicam.requirements import require

# Position in a Sequential of a ResNet's children -> torchvision's name. 2 and 3 have no weights.
_RESNET = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}


def resnet_trunk(state: Mapping[str, Tensor], path: Path, original: str) -> nn.Module:
    """A ResNet up to its last block: images [B,3,H,W] -> [B,C,h,w].

    Args:
        state: with torchvision's names (``layer1.0.conv1.weight``), or with their positions in a
            Sequential of the model's children (``4.0.conv1.weight``).
        path: of the checkpoint, for errors.
        original: prefix of the names in the file, for errors.

    Returns:
        ResNet-18 to 152, or any other number of such blocks, as in the weights.

    Raises:
        ModelError: weights that do not match.
        MissingExtra: torchvision is not installed.
    """
    resnet = require("torchvision", extra="models", operation=f"checkpoint {path}").models.resnet
    by_position = "0.weight" in state
    names = _RESNET if by_position else {name: name for name in _RESNET.values()}
    depths = []
    for stage in [k for k, name in names.items() if name.startswith("layer")]:
        blocks = {key.split(".")[1] for key in state if key.startswith(f"{stage}.")}
        if not blocks:
            raise ModelError(
                f"checkpoint {path}: expected a ResNet with four rows of blocks, got none in "
                f"{original}{stage}"
            )
        depths.append(len(blocks))
    bottleneck = any(key.endswith(".conv3.weight") for key in state)
    block = resnet.Bottleneck if bottleneck else resnet.BasicBlock
    network = resnet.ResNet(block, depths)
    # As children of a Sequential, without those after the last block.
    trunk = nn.Sequential()
    for name, child in network.named_children():
        if name not in ("avgpool", "fc"):
            trunk.add_module(name, child)
    unknown = {k: v for k, v in state.items() if k.split(".")[0] not in names}
    renamed = {
        f"{names[first]}.{rest}": value
        for key, value in state.items()
        for first, _, rest in [key.partition(".")]
        if first in names
    }
    fill(trunk, {**renamed, **unknown}, path, original)
    return trunk


def vgg16_trunk(state: Mapping[str, Tensor], path: Path, original: str) -> nn.Module:
    """VGG-16 up to its last convolution, without the ReLU behind it: images -> [B,512,h,w].

    Args:
        state: by position in torchvision's ``features``.
        path, original: see :func:`resnet_trunk`.

    Raises:
        ModelError: weights that do not fit.
        MissingExtra: torchvision is not installed.
    """
    models = require("torchvision", extra="models", operation=f"checkpoint {path}").models
    features = models.vgg16(weights=None, init_weights=False)
    trunk = nn.Sequential(*list(features.features.children())[:-2])
    fill(trunk, state, path, original)
    return trunk
