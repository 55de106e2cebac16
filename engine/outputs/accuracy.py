"""How many photos were placed within 1, 25, 200, 750 and 2500 km of where they were taken."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from combicam.engine.geo.density import RADII_KM
from combicam.engine.geo.distance import distance_km
from combicam.engine.inputs.ground_truth import read_truth, refuse_strangers
from combicam.engine.run.open_run import OpenRun, open_run
from combicam.engine.shards.status import OK
from combicam.engine.storage.paths import location

_Z = 1.959963984540054  # two-sided 95 % of the normal distribution


@dataclass(frozen=True)
class Within:
    """How many photos were placed within a radius.

    Attributes:
        radius_km: how far off they may be.
        count: of the photos.
        share: count / images.
        low, high: Wilson's 95 % interval of the share.
    """

    radius_km: float
    count: int
    share: float
    low: float
    high: float


@dataclass(frozen=True)
class Accuracy:
    """Errors of all photos that were placed and whose true place is known.

    Attributes:
        images: how many these are.
        failed: photos whose true place is known, but which could not be placed; they count
            nowhere else.
        within: for each radius.
        median_km: half of the photos are closer.
        median_low_km, median_high_km: its 95 % interval, from the order of the errors; infinite
            above where there are too few photos.
        mean_km: of the errors.
    """

    images: int
    failed: int
    within: tuple[Within, ...]
    median_km: float
    median_low_km: float
    median_high_km: float
    mean_km: float

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; what is infinite is null."""
        values = asdict(self)
        if not math.isfinite(self.median_high_km):
            values["median_high_km"] = None
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`to_dict`."""
        values = dict(values)
        if values["median_high_km"] is None:
            values["median_high_km"] = math.inf
        return cls(**values | {"within": tuple(Within(**row) for row in values["within"])})

    def lines(self) -> list[tuple[str, str]]:
        """What to print: names and values."""
        rows = [
            (
                f"within {row.radius_km:g} km",
                f"{row.share:.1%} ({row.low:.1%} to {row.high:.1%})",
            )
            for row in self.within
        ]
        median = (
            f"{self.median_km:,.1f} km ({self.median_low_km:,.1f} to {self.median_high_km:,.1f})"
        )
        of = f"{self.images} photos" + (f", {self.failed} not placed" if self.failed else "")
        return [*rows, ("median error", f"{median}, of {of}; intervals of 95 %")]


def measure(errors_km: Any, failed: int = 0) -> Accuracy | None:
    """The accuracy of errors; None where there are none.

    Args:
        errors_km: [N], kilometres.
        failed: photos without an error, see :class:`Accuracy`.

    Raises:
        ValueError: an error that is negative or NaN.
    """
    errors = np.sort(np.asarray(errors_km, np.float64))
    if not (errors >= 0).all():
        raise ValueError("accuracy: expected errors >= 0 km, got a negative one, or NaN")
    n = len(errors)
    if n == 0:
        return None
    within = []
    for radius in RADII_KM:
        count = int(np.searchsorted(errors, radius, side="right"))
        within.append(Within(radius, count, count / n, *wilson(count, n)))
    # Of n errors, about Binomial(n, 1/2) lie below the true median.
    half_width = _Z * math.sqrt(n) / 2
    low, high = math.floor(n / 2 - half_width), math.ceil(n / 2 + half_width)
    return Accuracy(
        images=n,
        failed=failed,
        within=tuple(within),
        median_km=float(np.median(errors)),
        median_low_km=float(errors[low - 1]) if low >= 1 else 0.0,
        median_high_km=float(errors[high]) if high < n else math.inf,
        mean_km=float(errors.mean()),
    )


def wilson(count: int, total: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference",
    JASA 22 (1927).
    """
    share, square = count / total, _Z**2 / total
    middle = (share + square / 2) / (1 + square)
    width = _Z / (1 + square) * math.sqrt(share * (1 - share) / total + square / (4 * total))
    # At none and at all, rounding must not leave the bound.
    return (
        0.0 if count == 0 else max(0.0, middle - width),
        1.0 if count == total else min(1.0, middle + width),
    )


def accuracy(run: str | Path | OpenRun, truth: str | Path | None = None) -> Accuracy | None:
    """How far the predictions of a run are from the truth; also while it goes on.

    Args:
        run: run directory, or one that is open.
        truth: CSV or Parquet file with the columns id, latitude and longitude; default: what the
            run was told.

    Returns:
        None where no true place of a placed photo is known.

    Raises:
        RunError: no run directory, or one without a committed shard.
        ValueError: a run without places, or a file of places that is none, or is of other photos.
        FileNotFoundError: no such file.
    """
    opened = run if isinstance(run, OpenRun) else open_run(run)
    names = opened.dataset.schema.names
    if "lat" not in names:
        raise ValueError(
            f"accuracy: expected a run whose classes have places, got {opened.path} without; run "
            "it with --classes"
        )
    if truth is None:
        return _known(opened) if "error_km" in names else None
    places = read_truth(location(truth))
    pairs: list[tuple[Any, ...]] = []
    failed, first, is_known = 0, None, False
    for row in _rows(opened, ["id", "status", "lat", "lon"]):
        first = row["id"] if first is None else first
        is_known |= row["id"] in places
        place = places.get(row["id"], (None, None))
        if place[0] is None:
            continue
        if row["status"] == OK:
            pairs.append((row["lat"], row["lon"], *place))
        else:
            failed += 1
    if not is_known:
        refuse_strangers(first, places)
    return measure(distance_km(*np.asarray(pairs, np.float64).reshape(-1, 4).T), failed)


def _known(opened: OpenRun) -> Accuracy | None:
    table = opened.table(["true_lat", "error_km"], where=pc.field("true_lat").is_valid())
    errors: NDArray[np.float64] = table.column("error_km").drop_null().to_numpy()
    return measure(errors, table.num_rows - len(errors))


def _rows(opened: OpenRun, columns: list[str]) -> Iterator[dict[str, Any]]:
    for batch in opened.dataset.to_batches(columns=columns):
        yield from batch.to_pylist()
