"""Prediction density against a sum in float64 over all pairs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from combicam.engine.geo import density
from combicam.engine.geo.density import RADII_KM, prediction_density
from combicam.engine.geo.distance import distance_km


def cells(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Everywhere, at the poles, on both sides of the dateline, and some a few metres apart."""
    random = np.random.default_rng(seed)
    lat = np.degrees(np.arcsin(random.uniform(-1, 1, count)))
    lon = random.uniform(-180, 180, count)
    lat[:6] = 90, -90, 89.999, 10, 10, 10.001
    lon[:6] = 0, 0, 120, 180, -180, -179.999
    lat[6:16] = 48.85 + random.normal(0, 0.01, 10)
    lon[6:16] = 2.35 + random.normal(0, 0.01, 10)
    return lat, lon


def brute(
    probabilities: torch.Tensor, lat: np.ndarray, lon: np.ndarray, at: list[int]
) -> list[list[float]]:
    exact = probabilities.double().numpy()
    rows = [distance_km(lat[i], lon[i], lat, lon) for i in at]
    return [[exact[b][rows[b] <= radius].sum() for radius in RADII_KM] for b in range(len(at))]


@pytest.mark.parametrize("elements", [1, 5000, 2**24])
def test_it_is_the_sum_over_all_near_cells(elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(density, "_CACHE_ELEMENTS", elements)  # rows at once: 1, 2, all
    lat, lon = cells(2000)
    torch.manual_seed(0)
    probabilities = (torch.randn(16, 2000) * 2).softmax(1)
    at = [*range(14), 500, 1999]
    found = prediction_density(probabilities, lat, lon, torch.tensor(at))
    assert found.shape == (16, 5) and found.dtype == torch.float32
    np.testing.assert_allclose(found, brute(probabilities, lat, lon, at), rtol=1e-6)
    assert (found.diff(dim=1) >= 0).all()
    assert (found[6:14, 0] > probabilities[range(6, 14), range(6, 14)]).any()  # 1 km is resolved
    east, west = prediction_density(probabilities[:1].expand(2, -1), lat, lon, torch.tensor([3, 4]))
    torch.testing.assert_close(east, west)  # one place, 180° east and west


def test_one_kilometre_is_told_from_its_neighbours() -> None:
    """0.99 and 1.01 km north: cosines that float32 rounds to 1."""
    degree = 180 / (np.pi * 6371.0088)
    lat = np.array([40.0, 40 + 0.99 * degree, 40 + 1.01 * degree])
    probabilities = torch.tensor([[0.5, 0.3, 0.2]])
    found = prediction_density(probabilities, lat, np.full(3, -70.0), torch.tensor([0]), [0, 1, 2])
    torch.testing.assert_close(found, torch.tensor([[0.5, 0.8, 1.0]]))


def test_everything_lies_within_half_the_earth() -> None:
    lat, lon = cells(50)
    probabilities = torch.rand(3, 50).softmax(1)
    found = prediction_density(probabilities, lat, lon, torch.tensor([0, 1, 20]), [20_016, 1e9])
    assert (found <= 1).all() and (found > 1 - 1e-6).all()


def test_arguments_that_do_not_fit() -> None:
    two = torch.full((1, 2), 0.5)
    with pytest.raises(ValueError, match=r"\[B,3\]"):
        prediction_density(two, [0, 1, 2], [0, 1, 2], torch.tensor([0]))
    with pytest.raises(ValueError, match=r"\(95\.0, 1\.0\) for number 1"):
        prediction_density(two, [0, 95], [0, 1], torch.tensor([0]))
    with pytest.raises(ValueError, match="radii >= 0"):
        prediction_density(two, [0, 1], [0, 1], torch.tensor([0]), [-1])
    with pytest.raises(ValueError, match="radii >= 0"):
        prediction_density(two, [0, 1], [0, 1], torch.tensor([0]), [])
