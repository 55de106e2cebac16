"""Compute the prediction density: the probability around the predicted cell."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from combicam.export.classes.places import EARTH_RADIUS_KM, check_places, unit_vectors

RADII_KM = (1.0, 25.0, 200.0, 750.0, 2500.0)  # street, city, region, country, continent
_CACHE_ELEMENTS = 2**18  # float64 elements per block of rows, which fit into a CPU's cache


def prediction_density(
    probabilities: Tensor,
    latitudes: Any,
    longitudes: Any,
    predicted: Tensor,
    radii_km: Sequence[float] = RADII_KM,
) -> Tensor:
    """Sum the probabilities of all cells within each radius of the predicted cell.

    ``density[b,r] = Σ_c p[b,c] · [distance(c, predicted_b) <= radius_r]``, between cell centres.

    Args:
        probabilities: float [B,n].
        latitudes, longitudes: [n], centres of the cells, degrees.
        predicted: int64 [B], the cells around which probabilities are summed.
        radii_km: R radii.

    Returns:
        float32 [B,R], at most 1, on the device of ``probabilities``.

    Raises:
        ValueError: shapes that do not match, locations not on Earth, or a negative radius.
    """
    latitudes, longitudes = (
        torch.as_tensor(values, dtype=torch.float64).cpu().numpy()
        for values in (latitudes, longitudes)
    )
    check_places(latitudes, longitudes, "prediction_density")
    if (
        probabilities.ndim != 2
        or probabilities.shape[1] != len(latitudes)
        or predicted.shape != probabilities.shape[:1]
    ):
        raise ValueError(
            f"prediction_density: expected probabilities [B,{len(latitudes)}], a column per cell, "
            f"and predicted [B], got {tuple(probabilities.shape)} and {tuple(predicted.shape)}"
        )
    vectors = torch.from_numpy(unit_vectors(latitudes, longitudes)).to(probabilities.device)
    return density_around(probabilities, vectors, predicted, cosines(radii_km))


def cosines(radii_km: Sequence[float]) -> tuple[float, ...]:
    """Cosine of the angle that each radius subtends.

    Raises:
        ValueError: a negative or non-finite radius.
    """
    if not len(radii_km) or not all(radius >= 0 for radius in radii_km):
        raise ValueError(f"prediction_density: expected radii >= 0 km, got {list(radii_km)}")
    # A cell is within 0 km of itself, even if rounding shortens its vector.
    slack = 4 * torch.finfo(torch.float64).eps
    return tuple(math.cos(min(r / EARTH_RADIUS_KM, math.pi)) - slack for r in radii_km)


def density_around(
    probabilities: Tensor, vectors: Tensor, predicted: Tensor, limits: Sequence[float]
) -> Tensor:
    """:func:`prediction_density` with precomputed constants: float32 [B,R].

    Uses float64: in float32 the cosine of 1 km rounds to 1. No array is larger than [B,n].

    Args:
        probabilities: float [B,n].
        vectors: float64 [n,3], of :func:`~combicam.export.classes.places.unit_vectors`.
        predicted: int64 [B].
        limits: of :func:`cosines`.
    """
    rows = len(probabilities)
    if probabilities.device.type == "cpu":
        rows = max(1, _CACHE_ELEMENTS // max(1, probabilities.shape[1]))
    parts = [
        _density(p, vectors, center, limits)
        for p, center in zip(probabilities.split(rows), predicted.split(rows), strict=True)
    ]
    return torch.cat(parts)


def _density(
    probabilities: Tensor, vectors: Tensor, predicted: Tensor, limits: Sequence[float]
) -> Tensor:
    exact = probabilities.double()
    cosine = vectors[predicted] @ vectors.T
    sums = [torch.where(cosine >= limit, exact, 0.0).sum(1) for limit in limits]
    return torch.stack(sums, 1).clamp_max(1.0).float()
