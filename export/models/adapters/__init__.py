"""Published geolocation checkpoints, each as a CNN of its own: images -> logits.

No weights are shipped nor downloaded: the checkpoint is the user's.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from combicam.export.models.models import LoadedModel, ModelConfig

# What --model calls a family of checkpoints -> the module whose load() reads it.
FAMILIES = {
    "geoestimation": "geoestimation",
    "certh": "certh",
    "eigenplaces": "descriptors",
    "cosplace": "descriptors",
}


def adapter(family: str) -> Callable[[str, ModelConfig], LoadedModel]:
    """What loads a family's checkpoints: the text behind the colon and a configuration -> a model.

    Args:
        family: of :data:`FAMILIES`.
    """
    module = importlib.import_module(f"combicam.export.models.adapters.{FAMILIES[family]}")
    load: Callable[[str, ModelConfig], LoadedModel] = module.load
    return load
