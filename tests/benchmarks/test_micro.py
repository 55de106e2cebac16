"""The small functions that every image passes: results checked, and timed by pytest-benchmark.

``pytest tests/benchmarks/test_micro.py --benchmark-enable`` times them; without it they run once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.decoders import by_pillow, encoded
from benchmarks.heads import CASES, random_inputs
from combicam import CellTable, Preprocess, read_shard
from combicam.engine.geo.density import prediction_density
from combicam.engine.geo.distance import distance_km
from combicam.engine.images.decode import DecodeConfig, decode_image
from combicam.engine.inputs.entry import Entry
from combicam.engine.shards.map_format import MapFormat
from combicam.engine.shards.quantise import QuantisedExplanation
from combicam.engine.shards.row_format import Record, ShardFormat
from combicam.engine.shards.writer import ShardWriter
from combicam.export.spec import CamSpec
from combicam.kernels.cam_head import cam_head_reference

CELLS = 12_893  # of GeoEstimation's finest head


@pytest.fixture(scope="module")
def places() -> tuple[np.ndarray, np.ndarray]:
    """Even on the sphere: latitudes and longitudes."""
    rng = np.random.default_rng(0)
    return np.degrees(np.arcsin(rng.uniform(-1, 1, CELLS))), rng.uniform(-180, 180, CELLS)


def test_head(benchmark: Any) -> None:
    """The arithmetic of the maps of ResNet-50's stages, four images."""
    case = CASES["resnet50"]
    inputs = random_inputs(case, 4, torch.float32, torch.device("cpu"), 0)
    options = (case.size, "gradcam", "sum", "map", True, 0.0, (), 1e-8, False)
    heatmaps = benchmark(cam_head_reference, inputs.acts, inputs.grads, *options)[0]
    assert heatmaps.shape[-2:] == case.size
    assert heatmaps.amin((-2, -1)).eq(0).all() and heatmaps.amax((-2, -1)).eq(1).all()


def test_decode_and_resize(benchmark: Any) -> None:
    """A photo of 2 megapixels to the input of a network."""
    data, _ = encoded("1920x1080:85")
    preprocess = Preprocess((224, 224), resize="squash")
    found = benchmark(decode_image, data, preprocess, DecodeConfig())
    expected = Image.fromarray(by_pillow(data)).resize((224, 224), Image.Resampling.BILINEAR)
    assert np.abs(found.pixels.astype(int) - np.asarray(expected)).max() <= 1


def test_shard_of_maps(benchmark: Any, tmp_path: Path) -> None:
    """256 rows of 224 x 224 maps to a committed shard."""
    maps = MapFormat(1, (224, 224), (224, 224))
    shard_format = ShardFormat(CamSpec(), maps, None)
    ramp = torch.linspace(0, 255, 224).round().to(torch.uint8)
    made = QuantisedExplanation(
        heatmaps=ramp.expand(256, 1, 224, 224).contiguous(),
        targets=torch.arange(256)[:, None],
        scores=torch.rand(256, 1),
        ranges=torch.rand(256, 1, 2),
        flat=torch.zeros(256, 1, dtype=torch.bool),
        finite=torch.ones(256, dtype=torch.bool),
    )
    rows = [Record(Entry(f"{i}", f"/{i}"), width=224, height=224) for i in range(256)]

    def write() -> Path:
        path = tmp_path / "0.parquet"
        writer = ShardWriter(path, shard_format)
        writer.add(shard_format.table(rows, made))
        writer.commit()
        return path

    shard = read_shard(benchmark(write))
    np.testing.assert_array_equal(shard.heatmaps, made.heatmaps.numpy())
    assert shard.targets[:, 0].tolist() == list(range(256))


def test_density(benchmark: Any, places: tuple[np.ndarray, np.ndarray]) -> None:
    """The probability around the answers of 64 images, at five radii."""
    probabilities = torch.full((64, CELLS), 1 / CELLS)
    answers = torch.arange(64)
    found = benchmark(prediction_density, probabilities, *places, answers)
    # Even probabilities: of a cap of 2500 km the share of the sphere.
    share = (1 - np.cos(2500 / 6371.0088)) / 2
    assert abs(float(found[:, -1].mean()) - share) < 0.1 * share
    assert (found.diff(dim=1) >= 0).all()


def test_distance(benchmark: Any, places: tuple[np.ndarray, np.ndarray]) -> None:
    """Great circles between 12,893 pairs."""
    found = benchmark(distance_km, *places, places[0][::-1], places[1][::-1])
    assert found.shape == (CELLS,) and 0 <= found.min() and found.max() < np.pi * 6371.1
    assert abs(found.mean() - np.pi / 2 * 6371.0088) < 100


def test_classes_at(benchmark: Any, places: tuple[np.ndarray, np.ndarray]) -> None:
    """The classes of 1,000 places among 12,893 others."""
    table = CellTable(*places)
    found = benchmark(table.classes_at, places[0][:1000], places[1][:1000])
    assert found.tolist() == list(range(1000))
