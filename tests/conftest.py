"""What many tests share: the trained demo network, and photos it was not traced with."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined: before the imports below

from hypothesis import settings
from PIL import Image
from torch import Tensor

from combicam.demo.model import load
from combicam.demo.planet import CELLS, postcard
from combicam.export.models.models import LoadedModel

sys.path.insert(0, str(Path(__file__).parent))  # for cam_oracle, fakes, spawned

from fakes import FakeExplainer, save_photos

# The first example of a process imports what the others find.
settings.register_profile("combicam", deadline=None)
settings.load_profile("combicam")
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """The same inputs in every run: a ReLU at zero to rounding must not come and go."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """What a machine measured before belongs to a test alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(autouse=True)
def _on_the_cpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU is for tests that mean it: those with its marker, and those of kernels."""
    means_it = request.node.get_closest_marker("gpu") or "device" in request.fixturenames
    if not means_it and "kernels" not in Path(request.node.path).parts:
        _without_gpu(monkeypatch)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
) -> Iterator[None]:
    """What several tests share is made before their own fixtures: on the CPU, too."""
    with pytest.MonkeyPatch.context() as patch:
        if fixturedef.scope != "function" and "kernels" not in Path(request.node.path).parts:
            _without_gpu(patch)
        return (yield)


def _without_gpu(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(torch.cuda, "is_available", lambda: False)
    patch.setenv("CUDA_VISIBLE_DEVICES", "")  # of processes that are started


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where kernels run: compiled on a GPU, in Triton's interpreter without one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Memory that nothing wrote is NaN, or 255."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before)


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


@pytest.fixture
def fake() -> type[FakeExplainer]:
    return FakeExplainer


@pytest.fixture
def photos() -> Callable[..., list[Path]]:
    return save_photos
