"""``Background``: photos of known places, among which a photo is searched within its cell.

Source: Kordopatis-Zilos et al., ICMR 2021, section 3.3 (search within cell).
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from combicam.errors import MissingExtra
from combicam.export.classes import places
from combicam.export.classes.places import EARTH_RADIUS_KM

FEATURES, LABELS, CELLS = "features", "labels", "cells"


@dataclass(frozen=True)
class Refined:
    """A place within a cell.

    Attributes:
        latitude, longitude: degrees.
        photos: int64 [m], the rows of the background photos that lie there, most similar first;
            empty where the cell has no photo: then the place is the cell's own.
        similarities: float32 [m], cosines.
    """

    latitude: float
    longitude: float
    photos: NDArray[np.int64]
    similarities: NDArray[np.float32]


class Background:
    """Descriptors of photos whose places are known, in an HDF5 file that stays on the disk.

    Args:
        path: HDF5 with ``features``, float [N,D], and ``labels``, [N,2]: latitude, longitude in
            degrees. Maybe ``cells``, int [N]: the class of each photo; without it a photo belongs
            to the class whose place is nearest, which takes some seconds for a million photos.
        latitudes, longitudes: [n], degrees: the places of the classes.

    Raises:
        MissingExtra: h5py or scikit-learn is not installed.
        FileNotFoundError: no such file.
        ValueError: another file, or places that are not on Earth.
    """

    def __init__(self, path: str | Path, latitudes: Any, longitudes: Any) -> None:
        places.check_places(latitudes, longitudes, "Background")
        self.path = Path(path)
        self._class_places = np.stack([latitudes, longitudes], 1).astype(np.float64)
        if not self.path.is_file():
            raise FileNotFoundError(f"Background: expected an HDF5 file, got {self.path}")
        h5py = _library("h5py")
        try:
            self._file = h5py.File(self.path, "r")
        except OSError as error:
            raise ValueError(f"Background: expected {path} as HDF5, got: {error}") from error
        try:
            self._read()
        except BaseException:
            self.close()
            raise

    def _read(self) -> None:
        missing = [name for name in (FEATURES, LABELS) if name not in self._file]
        if missing:
            raise ValueError(
                f"Background: expected {self.path} with {FEATURES} and {LABELS}, got "
                f"{', '.join(self._file) or 'nothing'}"
            )
        self._features = self._file[FEATURES]
        labels = np.asarray(self._file[LABELS][()], np.float64)
        shapes = self._features.shape, labels.shape
        if len(shapes[0]) != 2 or shapes[1] != (shapes[0][0], 2) or not shapes[0][0]:
            raise ValueError(
                f"Background: expected {FEATURES} [N,D] and {LABELS} [N,2] of N >= 1 photos, got "
                f"{shapes[0]} and {shapes[1]} in {self.path}"
            )
        places.check_places(labels[:, 0], labels[:, 1], f"Background: {self.path}")
        self.labels = labels
        if CELLS in self._file:
            cells = np.asarray(self._file[CELLS][()], np.int64)
            if (
                cells.shape != (len(labels),)
                or not np.isin(cells, np.arange(len(self._class_places))).all()
            ):
                raise ValueError(
                    f"Background: expected {CELLS} [N] as classes below "
                    f"{len(self._class_places)}, got others in {self.path}"
                )
        else:
            cells = _nearest(labels, self._class_places)
        # Rows of one cell side by side: a search reads two numbers instead of all.
        self._order = np.argsort(cells, kind="stable")
        self._starts = np.searchsorted(cells[self._order], np.arange(len(self._class_places) + 1))

    def __len__(self) -> int:
        return len(self.labels)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def photos_in(self, cell: int) -> NDArray[np.int64]:
        """Rows of the photos of a class, ascending.

        Raises:
            ValueError: no such class.
        """
        if not 0 <= cell < len(self._class_places):
            raise ValueError(
                f"Background: expected a class of 0 to {len(self._class_places) - 1}, got {cell}"
            )
        rows: NDArray[np.int64] = self._order[self._starts[cell] : self._starts[cell + 1]]
        return rows

    def refine(self, descriptor: Any, cell: int, top: int = 10, radius_km: float = 1.0) -> Refined:
        """Where in its cell a photo was taken: among the photos that look most like it.

        The most similar photos of the cell are joined to clusters, each photo with all that are at
        most ``radius_km`` away; the answer is the mean of the largest cluster on the sphere, of
        equally large ones the one with the most similar photo.

        Args:
            descriptor: float [D], of the photo; lengths do not matter.
            cell: the class that the network says.
            top: how many photos are looked at.
            radius_km: see above; great circles.

        Raises:
            ValueError: a descriptor of another length, or one that is not finite, also among those
                of the cell.
        """
        wanted = np.asarray(descriptor, np.float32).reshape(-1)
        width = self._features.shape[1]
        length = float(np.linalg.norm(wanted))
        if len(wanted) != width or not np.isfinite(length) or not length:
            raise ValueError(
                f"refine: expected a finite descriptor of {width} numbers that are not all 0, as "
                f"in {self.path}, got {len(wanted)} of length {length:g}"
            )
        if top < 1 or not radius_km > 0:
            raise ValueError(f"refine: expected top >= 1, radius_km > 0, got {top}, {radius_km}")
        rows = self.photos_in(cell)
        if not len(rows):
            here = self._class_places[cell]
            return Refined(float(here[0]), float(here[1]), rows, np.empty(0, np.float32))
        similarities = _cosines(np.asarray(self._features[rows], np.float32), wanted / length)
        if not np.isfinite(similarities).all():
            bad = int(rows[np.flatnonzero(~np.isfinite(similarities))[0]])
            raise ValueError(
                f"refine: expected finite {FEATURES}, got NaN or infinity in row {bad} of "
                f"{self.path}; make its descriptor again, or remove the row"
            )
        best = np.argsort(-similarities, kind="stable")[:top]
        rows, similarities = rows[best], similarities[best]
        near = _largest_cluster(self.labels[rows], radius_km)
        latitude, longitude = _mean_place(self.labels[rows[near]])
        return Refined(latitude, longitude, rows[near], similarities[near])


def _cosines(features: NDArray[np.float32], unit: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(features, axis=1)
    cosines: NDArray[np.float32] = features @ unit / np.maximum(lengths, np.float32(1e-12))
    return cosines


def _largest_cluster(labels: NDArray[np.float64], radius_km: float) -> NDArray[np.int64]:
    """Which of the places [m,2] are in the largest cluster; of equal ones the first one's."""
    cluster = _library("sklearn.cluster")
    angle = radius_km / EARTH_RADIUS_KM
    found = cluster.DBSCAN(eps=angle, min_samples=1, metric="haversine", algorithm="ball_tree")
    numbers = found.fit_predict(np.radians(labels))
    # Clusters are numbered in the order of their first place: argmax takes the first of equals.
    return np.flatnonzero(numbers == np.bincount(numbers).argmax())


def _mean_place(labels: NDArray[np.float64]) -> tuple[float, float]:
    """Of places [m,2] near each other, on both sides of the dateline or around a pole, too."""
    x, y, z = places.unit_vectors(*labels.T).mean(0)
    return float(np.degrees(np.arctan2(z, np.hypot(x, y)))), float(np.degrees(np.arctan2(y, x)))


def _nearest(labels: NDArray[np.float64], to: NDArray[np.float64]) -> NDArray[np.int64]:
    """For each place [N,2] the nearest of others [n,2]; by straight lines, in the same order."""
    tree = _library("sklearn.neighbors").KDTree(places.unit_vectors(*to.T))
    points = places.unit_vectors(*labels.T)
    found: NDArray[np.int64] = tree.query(points, return_distance=False)[:, 0]
    return found


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtra(
            f"{name}: expected it to be installed, got {error}; run: pip install 'combicam[geo]'"
        ) from error
