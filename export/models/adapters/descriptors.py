"""Load ``eigenplaces`` and ``cosplace``, which measure similarity to images of known locations.

These models compute a descriptor of length 1. With reference descriptors they become classifiers
whose logits are cosines: ``y = <descriptor(image), reference>``, explained with ``score="logit"``.

Source: Berton et al., CosPlace, CVPR 2022, and EigenPlaces, ICCV 2023; the checkpoints of
github.com/gmberton/CosPlace and EigenPlaces.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from combicam.errors import ModelError, first_line
from combicam.export.classes.cell_files import read_classes
from combicam.export.models.adapters.checkpoint import (
    check_family,
    fill,
    read_weights,
    require_checkpoint,
    under,
)
from combicam.export.models.adapters.trunks import resnet_trunk, vgg16_trunk
from combicam.export.models.models import LoadedModel, ModelConfig
from combicam.export.preprocess import Preprocess

# Size of the square training images.
PREPROCESS = Preprocess((512, 512), resize="squash", interpolation="bilinear")
_LINEAR = "aggregation.3."
_FLOOR = 1e-6


class PlaceDescriptor(nn.Module):
    """Images [B,3,H,W] -> descriptors of length 1 [B,D].

    Features at every position of the last grid are scaled to length 1; the generalised mean
    ``(mean max(x, 1e-6)^p)^(1/p)`` pools each channel; a Linear follows, and scaling to length 1.

    Args:
        backbone: images -> [B,C,h,w].
        linear: from C to D channels.
        power: p, float [1].
    """

    power: Tensor

    def __init__(self, backbone: nn.Module, linear: nn.Linear, power: Tensor) -> None:
        super().__init__()
        self.backbone = backbone
        self.linear = linear
        self.register_buffer("power", power)

    def forward(self, images: Tensor) -> Tensor:
        grid = F.normalize(self.backbone(images), dim=1).clamp(min=_FLOOR)
        pooled = grid.pow(self.power).mean((2, 3)).pow(1 / self.power)
        return F.normalize(self.linear(pooled), dim=-1)


class Similarity(nn.Module):
    """Images [B,3,H,W] -> cosines of their descriptors with n references, [B,n] in [-1, 1].

    Args:
        descriptor: images -> [B,D], of length 1.
        references: float [n,D]; scaled to length 1.
    """

    references: Tensor

    def __init__(self, descriptor: PlaceDescriptor, references: Tensor) -> None:
        super().__init__()
        self.descriptor = descriptor
        self.register_buffer("references", F.normalize(references.float(), dim=-1))

    def forward(self, images: Tensor) -> Tensor:
        return F.linear(self.descriptor(images), self.references)


def load(text: str, config: ModelConfig) -> LoadedModel:
    """Load ``--model eigenplaces`` or ``--model cosplace``.

    Args:
        text: must be empty; the checkpoint determines the backbone.
        config: with the checkpoint, the references, and optionally their names and locations.

    Raises:
        ModelError: another checkpoint, or the wrong size of references or classes.
        FileNotFoundError: no such file.
    """
    family = config.model.partition(":")[0]
    if text:
        raise ModelError(
            f"{family}: expected no suffix, got {text!r}; the checkpoint determines the backbone"
        )
    descriptor = load_descriptor(require_checkpoint(config), family)
    if config.references is None:
        raise ModelError(
            f"{family}: expected --references FILE.npy, the descriptors [n,D] of the locations "
            "to compare images with, got none; make them from images with load_descriptor()"
        )
    references = _references(config.references, descriptor.linear.out_features)
    classes = read_classes(config.classes) if config.classes is not None else None
    if classes is not None and len(classes) != len(references):
        raise ModelError(
            f"{family}: expected a class for each of {len(references)} references, got "
            f"{len(classes)} in {config.classes}"
        )
    return LoadedModel(
        module=Similarity(descriptor, references).eval(),
        preprocess=PREPROCESS,
        name=family,
        classes=classes,
        note=f"{family}: logits are similarities to the references; scores are not probabilities",
        score="logit",
    )


def load_descriptor(checkpoint: str | Path, family: str = "eigenplaces") -> PlaceDescriptor:
    """Load only the descriptor model, to compute descriptors of reference images.

    Args:
        checkpoint: a file of EigenPlaces or CosPlace: ResNet or VGG-16.
        family: for errors.

    Raises:
        ModelError: another checkpoint, or weights that do not match.
        FileNotFoundError: no such file.
    """
    path = Path(checkpoint)
    state = read_weights(path)
    check_family(state, ["backbone.0.weight", "aggregation.1.p", f"{_LINEAR}weight"], family, path)
    known = ("backbone.", _LINEAR, "aggregation.1.p")
    unknown = [key for key in state if not key.startswith(known)]
    if unknown:
        raise ModelError(
            f"checkpoint {path}: expected backbone.* and aggregation.*, got {unknown[0]}, too"
        )
    weights = under(state, "backbone.")
    # Position 0 is the first convolution of both; only VGG's has a bias.
    make = vgg16_trunk if "0.bias" in weights else resnet_trunk
    size, channels = state[f"{_LINEAR}weight"].shape
    linear = nn.Linear(channels, size)
    fill(linear, under(state, _LINEAR), path, _LINEAR)
    power = state["aggregation.1.p"].reshape(1).float()
    return PlaceDescriptor(make(weights, path, "backbone."), linear, power).eval()


def _references(path: Path, size: int) -> Tensor:
    if not path.is_file():
        raise FileNotFoundError(f"references: expected a file, got {path}")
    try:
        values = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ModelError(
            f"references: expected {path} as .npy of numbers, got {first_line(error)}"
        ) from error
    if not isinstance(values, np.ndarray) or values.dtype.kind != "f":
        raise ModelError(f"references: expected {path} as .npy of floating-point numbers")
    values = np.atleast_2d(values)
    if values.ndim != 2 or values.shape[1] != size or not len(values):
        raise ModelError(
            f"references: expected {path} as [n,{size}], as long as the checkpoint's descriptors, "
            f"got {values.shape}"
        )
    lengths = np.linalg.norm(values.astype(np.float64), axis=1)
    wrong = np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0)))
    if len(wrong):
        raise ModelError(
            f"references: expected descriptors of finite length above 0, got {lengths[wrong[0]]:g} "
            f"for number {wrong[0]} of {path}"
        )
    return torch.from_numpy(values.astype(np.float32))
