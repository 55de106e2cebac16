"""Search within a cell: by similarity, clusters on the sphere, the dateline and the poles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from combicam import MissingExtra
from combicam.engine.geo import refine as refining
from combicam.engine.geo.refine import Background, _largest_cluster, _mean_place
from combicam.export.classes.places import EARTH_RADIUS_KM, angles

KM = 1 / 111.195  # degrees of latitude
CLASSES = ([10.0, 10.0, -40.0], [20.0, 21.0, 179.9])


def write(path: Path, features: Any, labels: Any, **more: Any) -> Path:
    with h5py.File(path, "w") as file:
        file["features"], file["labels"] = np.asarray(features), np.asarray(labels)
        for name, values in more.items():
            file[name] = np.asarray(values)
    return path


def looking(*similarities: float) -> NDArray[np.float16]:
    """Descriptors whose cosines with (1, 0) are these, of several lengths, as float16."""
    found = [(s, (1 - s * s) ** 0.5) for s in similarities]
    scale = np.arange(1, len(found) + 1)[:, None]
    return (np.array(found) * scale).astype(np.float16)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    # Cell 0: a pair of photos 0.8 km apart, and one that looks most alike, far from them.
    # Cell 1: one photo. Cell 2: none.
    labels = [(10.0, 20.1), (10 + 0.8 * KM, 20.1), (10.3, 20.1), (10.0, 21.2), (10.4, 20.0)]
    return write(tmp_path / "b.h5", looking(0.7, 0.8, 0.99, 0.999, -0.5), labels)


def test_the_largest_cluster_wins_over_the_most_similar_photo(file: Path) -> None:
    with Background(file, *CLASSES) as background:
        assert len(background) == 5 and background.photos_in(0).tolist() == [0, 1, 2, 4]
        found = background.refine([5.0, 0.0], 0)
        assert found.photos.tolist() == [1, 0]
        assert found.similarities == pytest.approx([0.8, 0.7], abs=1e-3)
        assert found.latitude == pytest.approx(10 + 0.4 * KM, abs=1e-6)
        assert found.longitude == pytest.approx(20.1, abs=1e-6)
        # Of clusters of one photo the most similar photo is taken.
        alone = background.refine([1.0, 0.0], 0, radius_km=0.7)
        assert alone.photos.tolist() == [2] and alone.latitude == pytest.approx(10.3)
        # Photos beyond the most similar ones are not looked at.
        assert background.refine([1.0, 0.0], 0, top=2).photos.tolist() == [2]


def test_other_cells_do_not_count(file: Path) -> None:
    with Background(file, *CLASSES) as background:
        assert background.refine([1.0, 0.0], 1).photos.tolist() == [3]
        nothing = background.refine([1.0, 0.0], 2)
    assert len(nothing.photos) == len(nothing.similarities) == 0
    assert (nothing.latitude, nothing.longitude) == (-40.0, 179.9)


def test_cells_of_the_file_are_taken(tmp_path: Path) -> None:
    labels = [(10.0, 20.0), (10.0, 20.0), (10.0, 20.0)]
    path = write(tmp_path / "c.h5", looking(0.5, 0.6, 0.7), labels, cells=[2, 0, 2])
    with Background(path, *CLASSES) as background:
        assert background.photos_in(2).tolist() == [0, 2]
        assert background.photos_in(1).tolist() == []


def test_the_nearest_class_is_that_of_brute_force(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    z, lon = rng.uniform(-1, 1, (2, 340))
    lat, lon = np.degrees(np.arcsin(z)), 180 * lon
    labels = np.stack([lat[40:], lon[40:]], 1)
    path = write(tmp_path / "many.h5", np.ones((300, 2), np.float32), labels)
    with Background(path, lat[:40], lon[:40]) as background:
        for i, (a, b) in enumerate(labels):
            there = angles(np.full(40, a), np.full(40, b), lat[:40], lon[:40])
            assert i in background.photos_in(int(there.argmin()))


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([(0.0, 179.999), (0.0, -179.999)], (0.0, 180.0)),
        ([(-33.0, 179.998), (-33.0, -179.998), (-33.001, 180.0)], (-33.00033, 180.0)),
        ([(89.999, 0.0), (89.999, 180.0), (89.999, 90.0), (89.999, -90.0)], (90.0, None)),
    ],
)
def test_the_dateline_and_a_pole(
    labels: list[tuple[float, float]], expected: tuple[float, float | None]
) -> None:
    places = np.array(labels)
    assert _largest_cluster(places, 1.0).tolist() == list(range(len(labels)))
    latitude, longitude = _mean_place(places)
    assert latitude == pytest.approx(expected[0], abs=1e-4)
    if expected[1] is not None:
        assert abs(longitude) == pytest.approx(expected[1], abs=1e-4)


def test_clusters_are_those_of_a_walk_from_neighbour_to_neighbour() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        places = np.stack([60 + 0.03 * rng.random(10), (179.98 + 0.06 * rng.random(10))], 1)
        places[:, 1] = (places[:, 1] + 180) % 360 - 180
        lat, lon = places.T
        near = np.array([angles(np.full(10, a), np.full(10, b), lat, lon) for a, b in places])
        near = near * EARTH_RADIUS_KM <= 1.0
        groups: list[set[int]] = []
        for i in range(10):
            if any(i in group for group in groups):
                continue
            group, fresh = {i}, [i]
            while fresh:
                fresh = [j for j in np.flatnonzero(near[fresh].any(0)).tolist() if j not in group]
                group |= set(fresh)
            groups.append(group)
        expected = sorted(max(groups, key=len))  # the first of equals
        assert _largest_cluster(places, 1.0).tolist() == expected


def test_what_cannot_be(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Background(file, *CLASSES) as background:
        with pytest.raises(ValueError, match="finite descriptor of 2 numbers"):
            background.refine([1.0, 0, 0], 0)
        with pytest.raises(ValueError, match="not all 0"):
            background.refine([0.0, 0.0], 0)
        with pytest.raises(ValueError, match="0 to 2, got 3"):
            background.refine([1.0, 0.0], 3)
        with pytest.raises(ValueError, match="top >= 1"):
            background.refine([1.0, 0.0], 0, top=0)
    with pytest.raises(FileNotFoundError):
        Background(tmp_path / "none.h5", *CLASSES)
    (tmp_path / "text.h5").write_text("no numbers")
    with pytest.raises(ValueError, match="as HDF5"):
        Background(tmp_path / "text.h5", *CLASSES)
    damaged = np.array([[1.0, 0], [np.nan, 0], [0, 1]], np.float32)
    path = write(tmp_path / "nan.h5", damaged, [(10.0, 20.0), (10.0, 20.1), (10.0, 21.0)])
    with Background(path, *CLASSES) as background:
        assert background.refine([1.0, 0.0], 1).photos.tolist() == [2]
        with pytest.raises(ValueError, match="NaN or infinity in row 1 of"):
            background.refine([1.0, 0.0], 0)
    for name, features, labels, more, message in (
        ("none", np.ones((0, 2)), np.ones((0, 2)), {}, "of N >= 1 photos"),
        ("short", np.ones((2, 2)), np.ones((3, 2)), {}, r"\(2, 2\) and \(3, 2\)"),
        ("far", np.ones((1, 2)), [(91.0, 0.0)], {}, r"91\.0"),
        ("cells", np.ones((1, 2)), [(9.0, 0.0)], {"cells": [3]}, "classes below 3"),
    ):
        with pytest.raises(ValueError, match=message):
            Background(write(tmp_path / f"{name}.h5", features, labels, **more), *CLASSES)
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["x"] = np.ones(1)
    with pytest.raises(ValueError, match="with features and labels, got x"):
        Background(tmp_path / "other.h5", *CLASSES)

    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(refining.importlib, "import_module", missing)
    with pytest.raises(MissingExtra, match=r"combicam\[geo\]"):
        Background(file, *CLASSES)
