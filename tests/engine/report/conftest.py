"""Runs that are worth a report: layer maps, places, a crop, failures, and names that are traps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from combicam.engine.explain.explainer import Explainer
from combicam.engine.run.config import RunConfig
from combicam.engine.runner import run_images
from combicam.export.classes.classes import ClassTable
from combicam.export.models.models import ModelConfig
from combicam.export.preprocess import IMAGENET_MEAN, Preprocess

# File names that would be markup, or end the page's script, if they were not escaped.
TRAPS = (
    "<img src=x onerror=window.hacked=1>.jpg",
    "</script><script>window.hacked=1;<!--.jpg",
)
NAMES = ("Lisbon", "<b onclick=window.hacked=1>Suva</b>", "Nuuk", "Quito \" ' &")


def tiny_network() -> nn.Module:
    """Three convolutions and a head, which says something else of every kind of noise; seeded."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, 1, 1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, 2, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    ).eval()
    noise = nn.functional.interpolate(torch.rand(64, 3, 6, 6), (32, 32), mode="bicubic")
    normal = (noise - torch.tensor(IMAGENET_MEAN).view(3, 1, 1)) / 0.225
    head = network[-1]
    with torch.no_grad():
        head.weight *= 100
        head.bias.copy_(-head.weight @ network[:-1](normal).mean(0))
    return network


def write_photos(folder: Path, count: int) -> None:
    """Soft coloured noise of several shapes; and the traps, and a file that is no photo."""
    rng = np.random.default_rng(1)
    names = [f"p{i:02d}.jpg" for i in range(count)] + list(TRAPS)
    for i, name in enumerate(names):
        size = ((90, 60), (60, 90), (64, 64))[i % 3]
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse.resize(size, Image.Resampling.BICUBIC).save(path, quality=95)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 no photo")


def make_run(folder: Path, count: int, resize: str = "crop", store: str = "layers") -> Path:
    write_photos(folder / "in", count)
    classes = ClassTable(NAMES, (38.7, -18.1, 64.2, -0.2), (-9.1, 178.4, -51.7, -78.5))
    explainer = Explainer(
        tiny_network(),
        preprocess=Preprocess((32, 32), resize=resize, crop_pct=0.9),
        layers=["1", "3", "5"],
        targets=2,
        classes=classes,
        keep_layers=store == "layers",
    )
    truth = folder / "truth.csv"
    truth.write_text("id,lat,lon\n" + "".join(f"p{i:02d}.jpg,-18,-179\n" for i in range(6)))
    config = RunConfig(
        str(folder / "in"),
        folder / "run",
        ModelConfig("tiny"),
        batch_size=8,
        shard_size=6,
        store=store,
        truth=truth,
        progress=False,
    )
    run_images(config, explainer)
    return folder / "run"


@pytest.fixture(scope="session")
def layers_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """13 rows in 3 shards: 12 explained, with layer maps, of crops; 6 of known place; 1 broken."""
    return make_run(tmp_path_factory.mktemp("layers"), 10)
