"""Check, measure and search locations on Earth, given as arrays of degrees."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

EARTH_RADIUS_KM = 6371.0088  # mean radius of WGS 84
_CHUNK = 256  # locations to compare with all others at a time


def check_places(latitudes: Any, longitudes: Any, operation: str) -> None:
    """Check that locations, [n] in degrees, are on Earth.

    Raises:
        ValueError: one is not; the message gives its number if there are several.
    """
    lat, lon = np.asarray(latitudes, np.float64), np.asarray(longitudes, np.float64)
    if lat.shape != lon.shape:
        raise ValueError(
            f"{operation}: expected as many latitudes as longitudes, got {lat.shape} and "
            f"{lon.shape}"
        )
    good = (np.abs(lat) <= 90) & (np.abs(lon) <= 180)
    if not good.all():
        i = int(np.flatnonzero(~good)[0])
        raise ValueError(
            f"{operation}: expected latitude in [-90, 90] and longitude in [-180, 180], got "
            f"({lat[i]}, {lon[i]})" + (f" for number {i}" if len(lat) > 1 else "")
        )


def unit_vectors(latitudes: Any, longitudes: Any) -> NDArray[np.float64]:
    """Locations [n], degrees, as points of the unit sphere: float64 [n,3]."""
    lat, lon = (np.radians(np.asarray(values, np.float64)) for values in (latitudes, longitudes))
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], -1)


def square_chords(
    latitudes: Any, longitudes: Any, to_latitudes: Any, to_longitudes: Any
) -> NDArray[np.float64]:
    """Squared straight distances through a unit sphere, [m,n]; also precise if small.

    Args:
        latitudes, longitudes: [m], degrees.
        to_latitudes, to_longitudes: [n], degrees.
    """
    here, there = unit_vectors(latitudes, longitudes), unit_vectors(to_latitudes, to_longitudes)
    squares = np.zeros((len(here), len(there)))
    for axis in range(3):
        squares += (here[:, None, axis] - there[None, :, axis]) ** 2
    return squares


def square_chord(km: float) -> float:
    """Convert a great-circle distance to the squared chord of :func:`square_chords`."""
    angle = km / EARTH_RADIUS_KM
    return float("inf") if angle >= np.pi else float((2 * np.sin(angle / 2)) ** 2)


def angles(
    latitudes: Any, longitudes: Any, to_latitudes: Any, to_longitudes: Any
) -> NDArray[np.float64]:
    """Great-circle distances of n locations from n others, radians."""
    here, there = unit_vectors(latitudes, longitudes), unit_vectors(to_latitudes, to_longitudes)
    half_chord = np.sqrt(((here - there) ** 2).sum(-1)) / 2
    return np.asarray(2 * np.arcsin(half_chord.clip(max=1.0)))


def nearest(
    latitudes: Any, longitudes: Any, to_latitudes: Any, to_longitudes: Any
) -> NDArray[np.int64]:
    """For each of m locations, the nearest of n others: int64 [m].

    If two distances differ by only some centimetres, it may be either.
    """
    here, there = unit_vectors(latitudes, longitudes), unit_vectors(to_latitudes, to_longitudes).T
    parts = [(here[i : i + _CHUNK] @ there).argmax(1) for i in range(0, len(here), _CHUNK)]
    return np.concatenate([np.empty(0, np.int64), *parts])
