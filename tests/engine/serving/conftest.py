"""Models as NVIDIA Triton Inference Server would serve them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from combicam import Explainer, LoadedModel, ServedModel, export_triton_repository

MAX_BATCH = 5


class Tiny(nn.Sequential):
    """Two blocks of convolutions and four classes."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(
            nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU()),
            nn.Sequential(nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU()),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 4),
        )


@pytest.fixture(scope="session")
def planet(demo_model: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    explainer = Explainer(demo_model, layers="stages", targets=2)
    folder = tmp_path_factory.mktemp("planet") / "models"
    return export_triton_repository(explainer, folder, max_batch_size=MAX_BATCH)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ServedModel]:
    """With layer maps, for images that are not square, one at a time."""
    made: dict[str, ServedModel] = {}

    def make(kind: str) -> ServedModel:
        if kind not in made:
            explainer = Explainer(Tiny(), (24, 40), layers=["0", "1"], keep_layers=True)
            folder = tmp_path_factory.mktemp(kind)
            made[kind] = export_triton_repository(
                explainer, folder, name=f"tiny-{kind}", target_input=kind, max_batch_size=1
            )
        return made[kind]

    return make


@pytest.fixture(scope="session", params=["planet", "classes", "none", "weights"])
def model(
    request: pytest.FixtureRequest, planet: ServedModel, tiny: Callable[[str], ServedModel]
) -> ServedModel:
    return planet if request.param == "planet" else tiny(request.param)
