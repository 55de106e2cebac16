"""Count the images located within 1, 25, 200, 750 and 2500 km of where they were taken."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np

from combicam.engine.geo.density import RADII_KM


@dataclass(frozen=True)
class Within:
    """How many photos were located within a radius.

    Attributes:
        radius_km: largest error.
        count: number of photos.
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
    """Location errors of all photos with a prediction and ground truth.

    Attributes:
        images: number of these photos.
        failed: photos with ground truth but no prediction; counted only here.
        within: for each radius.
        median_km: the median error.
        median_low_km, median_high_km: its 95 % interval, from the order statistics of the errors;
            infinite above if there are too few photos.
        mean_km: the mean error.
    """

    images: int
    failed: int
    within: tuple[Within, ...]
    median_km: float
    median_low_km: float
    median_high_km: float
    mean_km: float

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; infinite values are null."""
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
        """The rows to print: names and values."""
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
        of = f"{self.images} photos" + (f", {self.failed} not located" if self.failed else "")
        return [*rows, ("median error", f"{median}, of {of}; intervals of 95 %")]


def measure(errors_km: Any, failed: int = 0) -> Accuracy | None:
    """Summarise errors; None if there are none.

    Args:
        errors_km: [N], kilometres.
        failed: photos without an error, see :class:`Accuracy`.

    Raises:
        ValueError: an error that is negative or NaN.
    """
    from scipy.stats import binomtest, quantile_test  # slow to import: `combicam status` must not

    errors = np.sort(np.asarray(errors_km, np.float64))
    if not (errors >= 0).all():
        raise ValueError("accuracy: expected errors >= 0 km, got a negative one, or NaN")
    n = len(errors)
    if n == 0:
        return None
    within = []
    for radius in RADII_KM:
        count = int(np.searchsorted(errors, radius, side="right"))
        low, high = binomtest(count, n).proportion_ci(method="wilson")
        within.append(Within(radius, count, count / n, float(low), float(high)))
    low, high = quantile_test(errors, p=0.5).confidence_interval()
    return Accuracy(
        images=n,
        failed=failed,
        within=tuple(within),
        median_km=float(np.median(errors)),
        median_low_km=0.0 if math.isnan(low) else float(low),
        median_high_km=math.inf if math.isnan(high) else float(high),
        mean_km=float(errors.mean()),
    )
