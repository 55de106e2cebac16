"""What many tests share: the trained demo network, and photos it was not traced with."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from combicam.demo.model import load
from combicam.demo.planet import CELLS, postcard
from combicam.export.models import LoadedModel

sys.path.insert(0, str(Path(__file__).parent))  # for cam_oracle
torch.set_num_threads(2)


@pytest.fixture(scope="session")
def demo_model() -> LoadedModel:
    return load()


@pytest.fixture(scope="session")
def postcards() -> Callable[[int, int], Tensor]:
    """uint8 [count,160,160,3], drawn from ``seed`` on."""

    def draw(count: int, seed: int) -> Tensor:
        cards = [postcard((seed + i) % len(CELLS), seed + i).image for i in range(count)]
        pixels = [Image.fromarray(c).resize((160, 160), Image.Resampling.BILINEAR) for c in cards]
        return torch.from_numpy(np.stack([np.asarray(p) for p in pixels]))

    return draw
