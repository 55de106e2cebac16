"""``ClassTable``: what the classes of a model are called and where on Earth they lie."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

COLUMNS = ("class", "name", "latitude", "longitude", "s2_token")


@dataclass(frozen=True)
class ClassTable:
    """Class number -> name, place. Every column is empty or has one entry per class.

    Args:
        names: what to print.
        latitudes, longitudes: of the class's cell, degrees, WGS 84; both or none.
        s2_tokens: of the class's S2 cell.

    Raises:
        ValueError: columns of different lengths, or a place that is not on Earth.
    """

    names: tuple[str, ...] = ()
    latitudes: tuple[float, ...] = ()
    longitudes: tuple[float, ...] = ()
    s2_tokens: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        columns = {
            "names": self.names,
            "latitudes": self.latitudes,
            "longitudes": self.longitudes,
            "s2_tokens": self.s2_tokens,
        }
        lengths = {name: len(column) for name, column in columns.items() if len(column)}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"ClassTable: expected columns of one length, got {lengths}")
        if len(self.latitudes) != len(self.longitudes):
            raise ValueError("ClassTable: expected both latitudes and longitudes, got one of them")
        for i, (lat, lon) in enumerate(zip(self.latitudes, self.longitudes, strict=True)):
            if not (-90 <= lat <= 90 and -180 <= lon <= 180):
                raise ValueError(
                    f"ClassTable: expected latitude in [-90, 90] and longitude in [-180, 180], "
                    f"got ({lat}, {lon}) for class {i}"
                )

    def __len__(self) -> int:
        return max(len(self.names), len(self.latitudes), len(self.s2_tokens))

    @property
    def has_places(self) -> bool:
        """Whether classes have latitude and longitude."""
        return bool(self.latitudes)

    def name(self, index: int) -> str:
        """The class's name, or its number."""
        return self.names[index] if self.names else str(index)

    @classmethod
    def from_csv(cls, path: str | Path) -> Self:
        """Read ``class,name,latitude,longitude,s2_token``; all but ``class`` are optional.

        Raises:
            ValueError: no ``class`` column, classes not 0..n-1, or a number that is none.
        """
        path = Path(path)
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
        if not rows or "class" not in rows[0]:
            raise ValueError(
                f"ClassTable: expected {path} to have the columns {','.join(COLUMNS)} "
                f"and a row per class, got {list(rows[0]) if rows else 'no rows'}"
            )
        try:
            rows.sort(key=lambda row: int(row["class"]))
            numbers = [int(row["class"]) for row in rows]
            places = (
                [(float(row["latitude"]), float(row["longitude"])) for row in rows]
                if "latitude" in rows[0]
                else []
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"ClassTable: {path} has a value that is no number: {error}"
            ) from error
        if numbers != list(range(len(rows))):
            raise ValueError(
                f"ClassTable: expected classes 0..{len(rows) - 1} in {path}, each once"
            )

        def column(key: str) -> tuple[str, ...]:
            return tuple(row[key] for row in rows) if key in rows[0] else ()

        return cls(
            names=column("name"),
            latitudes=tuple(lat for lat, _ in places),
            longitudes=tuple(lon for _, lon in places),
            s2_tokens=column("s2_token"),
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready columns."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Sequence[Any]]) -> Self:
        """The inverse of :meth:`to_dict`."""
        return cls(**{k: tuple(v) for k, v in values.items()})
