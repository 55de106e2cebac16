"""Define ``ClassTable``, names and locations of a model's classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

COLUMNS = ("class", "name", "latitude", "longitude", "s2_token")


@dataclass(frozen=True)
class ClassTable:
    """Class number -> name, location. Every column is empty or has one entry per class.

    Args:
        names: of the classes.
        latitudes, longitudes: of the class's cell, degrees, WGS 84; both or none.
        s2_tokens: of the class's S2 cell.

    Raises:
        ValueError: columns of different lengths, or a location that is not on Earth.
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
            raise ValueError(f"ClassTable: expected columns of equal length, got {lengths}")
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
        """Read a file of classes; see :func:`~combicam.export.classes.cell_files.read_classes`."""
        from combicam.export.classes.cell_files import read_classes  # avoids a circular import

        return cls(**read_classes(path).__dict__)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready columns."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Sequence[Any]]) -> Self:
        """The inverse of :meth:`to_dict`."""
        return cls(**{k: tuple(v) for k, v in values.items()})
