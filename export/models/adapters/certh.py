"""Load ``certh``, the model of the Combi-CAM paper: 31,145 cells on EfficientNet-B4.

Its last layer is a mixture of von Mises-Fisher densities: the model predicts the weight π of each
density, and returns the centre μ of the one with the largest weight. The logits' softmax is π.

Source: Kordopatis-Zilos et al., Leveraging EfficientNet and Contrastive Learning for Accurate
Global-scale Location Estimation, ICMR 2021; the files of github.com/mever-team/visloc-estimation.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn

from combicam.errors import ModelError
from combicam.export.classes.cell_files import read_classes
from combicam.export.classes.classes import ClassTable
from combicam.export.models.adapters.checkpoint import (
    check_family,
    fill,
    read_weights,
    require_checkpoint,
    under,
)
from combicam.export.models.adapters.efficientnet import EfficientNet
from combicam.export.models.models import LoadedModel, ModelConfig
from combicam.export.preprocess import Preprocess

# The whole image, with a shorter side of 300 pixels.
PREPROCESS = Preprocess((300, 300), resize="short-side", interpolation="bilinear")
_SUFFIXES = (".pt", ".pth", ".safetensors")
# Key prefixes of the model's parts if all are in one file.
_PREFIXES = ("backbone.base_cnn.", "base_cnn.", "backbone.", "cls_head.", "rrm_head.")
_LINEAR = "mixture_weights.seq_model.0."


class Certh(nn.Module):
    """Images [B,3,H,W] -> logits [B,n]; their softmax is π, the weights of the mixture.

    Args:
        backbone: images -> features [B,C].
        mixture: features -> logits [B,n].
    """

    def __init__(self, backbone: EfficientNet, mixture: nn.Linear) -> None:
        super().__init__()
        self.backbone = backbone
        self.mixture_weights = mixture

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.mixture_weights(self.backbone(images))
        return logits


def load(text: str, config: ModelConfig) -> LoadedModel:
    """Load ``--model certh``.

    Args:
        text: must be empty.
        config: with the checkpoint: one file, or the folder of ``efficientnet_backbone.pt`` and
            ``mvmf_head.pt``. It has the classes' locations; a table may replace them.

    Raises:
        ModelError: another checkpoint, or the wrong number of classes.
        FileNotFoundError: no such file.
    """
    if text:
        raise ModelError(f"certh: expected no suffix, got {text!r}")
    path = require_checkpoint(config)
    state = _read(path)
    check_family(state, ["_conv_stem.weight", "mvmf.mus", f"{_LINEAR}weight"], "certh", path)
    classes, unit = _locations(state["mvmf.mus"], path)
    if config.classes is not None:
        known, classes = classes, read_classes(config.classes)
        if len(classes) != len(known):
            raise ModelError(
                f"certh: expected a table of the {len(known)} cells of the checkpoint, got "
                f"{len(classes)} in {config.classes}; leave out --classes, the checkpoint "
                "has their locations"
            )
    backbone = EfficientNet()
    fill(backbone, {k: v for k, v in state.items() if _is_backbone(k)}, path, "")
    mixture = nn.Linear(backbone.out_features, len(classes))
    fill(mixture, under(state, _LINEAR), path, _LINEAR)
    return LoadedModel(
        module=Certh(backbone, mixture).eval(),
        preprocess=PREPROCESS,
        name="certh",
        classes=classes,
        note=f"certh: the locations of its cells were read as {unit}",
    )


def _read(path: Path) -> dict[str, Tensor]:
    """Read all weights of a file, or of the files of a folder, without prefixes of their names."""
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in _SUFFIXES)
        if not files:
            raise ModelError(
                f"checkpoint {path}: expected a folder with efficientnet_backbone.pt and "
                "mvmf_head.pt, got no such file"
            )
    state: dict[str, Tensor] = {}
    for file in files:
        for key, value in read_weights(file).items():
            prefix = next((p for p in _PREFIXES if key.startswith(p)), "")
            name = key.removeprefix(prefix)
            if name in state:
                raise ModelError(f"checkpoint {path}: expected {name} once, got it again in {file}")
            state[name] = value
    return state


def _is_backbone(key: str) -> bool:
    # The file also has the package's classifier, which is not used.
    return key.startswith("_") and not key.startswith("_fc.")


def _locations(centres: Tensor, path: Path) -> tuple[ClassTable, str]:
    """Locations of the classes from μ [2,n], and their unit in the file.

    A model of the whole Earth has cells beyond π degrees, so the values reveal their unit.
    """
    if centres.ndim != 2 or centres.shape[0] != 2 or not bool(torch.isfinite(centres).all()):
        raise ModelError(
            f"checkpoint {path}: expected mvmf.mus as finite numbers [2,n], latitudes above "
            f"longitudes, got {tuple(centres.shape)}"
        )
    lat, lon = centres.double()
    in_radians = bool((lat.abs() <= math.pi / 2).all() and (lon.abs() <= math.pi).all())
    if in_radians:
        lat, lon = lat.rad2deg(), lon.rad2deg()
    if bool((lat.abs() > 90).any()):
        i = int(lat.abs().argmax())
        raise ModelError(
            f"checkpoint {path}: expected latitudes in the first row of mvmf.mus, got "
            f"{float(lat[i]):g} for class {i}"
        )
    lon = torch.where(lon.abs() > 180, (lon + 180) % 360 - 180, lon)
    table = ClassTable(latitudes=tuple(lat.tolist()), longitudes=tuple(lon.tolist()))
    return table, "radians" if in_radians else "degrees"
