"""Define ``CellTable``, the classes of a geolocation model as cells of the Earth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from combicam.export.classes import places, s2
from combicam.export.classes.classes import ClassTable


@dataclass(frozen=True, eq=False)
class CellTable:
    """Class number -> location and S2 cell, with queries for classes by region.

    Args:
        latitudes, longitudes: float64 [n], degrees; the mean location of the class's images, or
            the centre of its cell.
        ids: uint64 [n], ids of the S2 cells; empty if classes are only locations.
        names: for messages and tables; empty or n.

    Raises:
        ValueError: columns of different lengths, a location that is not on Earth, an invalid S2
            cell, or a duplicate cell.
    """

    latitudes: NDArray[np.float64]
    longitudes: NDArray[np.float64]
    ids: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, dtype in (
            ("latitudes", np.float64), ("longitudes", np.float64), ("ids", np.uint64)
        ):  # fmt: skip
            column = np.array(getattr(self, name), dtype).reshape(-1)
            column.setflags(write=False)
            object.__setattr__(self, name, column)
        object.__setattr__(self, "names", tuple(self.names))
        if not len(self):
            raise ValueError("CellTable: expected at least one cell, got none")
        lengths = {n: len(getattr(self, n)) for n in ("longitudes", "ids", "names")}
        wrong = {n: k for n, k in lengths.items() if k != len(self) and (k or n == "longitudes")}
        if wrong:
            raise ValueError(
                f"CellTable: expected columns of {len(self)} cells, as many as latitudes, "
                f"got {wrong}"
            )
        places.check_places(self.latitudes, self.longitudes, "CellTable")
        self._check_ids()

    def _check_ids(self) -> None:
        known, counts = np.unique(self.ids, return_counts=True)
        if (counts > 1).any():
            token = s2.tokens(known[counts > 1])[0]
            classes = np.flatnonzero(self.ids == known[counts > 1][0])[:2].tolist()
            raise ValueError(
                f"CellTable: expected every S2 cell once, got {token} for the classes "
                f"{classes[0]} and {classes[1]}"
            )
        wrong = np.flatnonzero(~s2.are_cells(self.ids))
        if len(wrong):
            raise ValueError(
                f"CellTable: expected ids of S2 cells, got {int(self.ids[wrong[0]]):#x} for "
                f"class {wrong[0]}"
            )

    def __len__(self) -> int:
        return len(self.latitudes)

    @classmethod
    def from_classes(cls, classes: ClassTable) -> Self:
        """The cells of a class table, such as ``explainer.classes``.

        Raises:
            ValueError: classes without locations, or an invalid S2 token.
        """
        if not classes.has_places:
            raise ValueError(
                "CellTable: expected classes with latitude and longitude, got a table without "
                "locations; give one with --classes"
            )
        ids = []
        for i, token in enumerate(classes.s2_tokens):
            try:
                ids.append(s2.cell_id(token))
            except ValueError as error:
                raise ValueError(f"CellTable: class {i}: {error}") from error
        return cls(
            latitudes=np.array(classes.latitudes),
            longitudes=np.array(classes.longitudes),
            ids=np.array(ids, np.uint64),
            names=classes.names,
        )

    def to_classes(self) -> ClassTable:
        """The table that is stored in artifacts, and gives a run's rows their locations."""
        return ClassTable(
            names=self.names,
            latitudes=tuple(self.latitudes.tolist()),
            longitudes=tuple(self.longitudes.tolist()),
            s2_tokens=self.tokens,
        )

    @property
    def tokens(self) -> tuple[str, ...]:
        """Tokens of the S2 cells; empty if classes are only locations."""
        return s2.tokens(self.ids)

    @property
    def levels(self) -> NDArray[np.int64]:
        """Levels of the S2 cells, [n]; empty if classes are only locations."""
        return s2.levels(self.ids)

    def ancestors_in(self, coarser: CellTable) -> NDArray[np.int64]:
        """For every class, the class of a coarser table whose cell contains its cell.

        Args:
            coarser: a table of larger cells.

        Returns:
            int64 [n]; -1 if no cell of the coarser table contains it.

        Raises:
            ValueError: a table without S2 cells.
        """
        for table in (self, coarser):
            table._need_cells("ancestors_in")
        return coarser._smallest_over(self.ids)

    def holding(self, latitude: float, longitude: float) -> int:
        """The class whose cell contains a location; without cells, the nearest class.

        Returns:
            A target for ``explainer(images, targets=...)``.

        Raises:
            ValueError: not on Earth, or in no cell of the table.
        """
        places.check_places([latitude], [longitude], "holding")
        if len(self.ids):
            found = int(self._smallest_over(s2.leaves([latitude], [longitude]))[0])
            if found < 0:
                near = self.describe(int(self._nearest([latitude], [longitude])[0]))
                raise ValueError(
                    f"holding: expected a location in one of {len(self)} cells, got {latitude:g},"
                    f"{longitude:g}, which is in none; the nearest is {near}: use it, or a region "
                    "within some km"
                )
            return found
        return int(self._nearest([latitude], [longitude])[0])

    def classes_at(
        self, latitudes: Sequence[float], longitudes: Sequence[float]
    ) -> NDArray[np.int64]:
        """The classes of many locations: the cell that contains each, else the nearest class.

        Args:
            latitudes, longitudes: [m], degrees.

        Returns:
            int64 [m], targets for ``explainer(images, targets=...)`` with m images.

        Raises:
            ValueError: not on Earth.
        """
        places.check_places(latitudes, longitudes, "classes_at")
        found = np.full(len(latitudes), -1, np.int64)
        if len(self.ids):
            found = self._smallest_over(s2.leaves(latitudes, longitudes))
        lost = np.flatnonzero(found < 0)
        found[lost] = self._nearest(np.asarray(latitudes)[lost], np.asarray(longitudes)[lost])
        return found

    def within(self, km: float, latitude: float, longitude: float) -> NDArray[np.float32]:
        """The region of all classes within a distance of a location.

        Args:
            km: great-circle distance on a sphere of 6371.0088 km.
            latitude, longitude: of the location, degrees.

        Returns:
            float32 [n], 1 for the classes of the region: ``explainer(images, targets=...)``
            explains the logarithm of their summed probability.

        Raises:
            ValueError: not on Earth, or no class within the distance.
        """
        places.check_places([latitude], [longitude], "within")
        if not km > 0:
            raise ValueError(f"within: expected km > 0, got {km}")
        chords = places.square_chords([latitude], [longitude], self.latitudes, self.longitudes)[0]
        inside = chords <= places.square_chord(km)
        if not inside.any():
            near = int(chords.argmin())
            raise ValueError(
                f"within: expected a class within {km:g} km of {latitude:g},{longitude:g}, got "
                f"none; the nearest is {self.describe(near)}"
            )
        return inside.astype(np.float32)

    def under(self, token: str) -> NDArray[np.float32]:
        """The region of all classes whose cell is an S2 cell, or lies inside it.

        Args:
            token: of the S2 cell.

        Returns:
            float32 [n], 1 for the classes of the region, see :meth:`within`.

        Raises:
            ValueError: an invalid token, a table without S2 cells, or no class inside.
        """
        self._need_cells("under")
        first, last = s2.descendants(self._id(token, "under"))
        inside = (self.ids >= np.uint64(first)) & (self.ids <= np.uint64(last))
        if not inside.any():
            raise ValueError(
                f"under: expected an S2 cell with classes inside, got {token}, which has none; "
                "use a larger cell, or the cell of a class"
            )
        return inside.astype(np.float32)

    def of_token(self, token: str) -> int:
        """The class of an S2 cell.

        Raises:
            ValueError: an invalid token, a table without S2 cells, or no class with that cell.
        """
        self._need_cells("of_token")
        found = np.flatnonzero(self.ids == np.uint64(self._id(token, "of_token")))
        if not len(found):
            raise ValueError(
                f"of_token: expected the S2 token of a class, got {token}; for all classes inside "
                f"that cell, use the region under:{token}"
            )
        return int(found[0])

    def describe(self, index: int) -> str:
        """A class as text: number, token or name, location."""
        label = self.tokens[index] if len(self.ids) else ""
        label = self.names[index] if self.names else label
        at = f"at {self.latitudes[index]:.4f},{self.longitudes[index]:.4f}"
        return f"class {index} ({label} {at})" if label else f"class {index} ({at})"

    def _need_cells(self, operation: str) -> None:
        if not len(self.ids):
            raise ValueError(
                f"{operation}: expected a table with S2 tokens, got only locations; use a "
                "location, or the classes within some km of it"
            )

    @staticmethod
    def _id(token: str, operation: str) -> int:
        try:
            return s2.cell_id(token)
        except ValueError as error:
            raise ValueError(f"{operation}: {error}") from error

    def _smallest_over(self, ids: s2.Ids) -> NDArray[np.int64]:
        """For every given cell, the class of the smallest cell that contains it, or -1."""
        found = np.full(len(ids), -1, np.int64)
        order = np.argsort(self.ids)
        known = self.ids[order]
        given = s2.levels(ids)
        for level in np.unique(self.levels)[::-1].tolist():
            open_ = np.flatnonzero((found < 0) & (given >= level))
            wanted = s2.ancestors(ids[open_], level)
            at = np.searchsorted(known, wanted).clip(max=len(known) - 1)
            hit = known[at] == wanted
            found[open_[hit]] = order[at[hit]]
        return found

    def _nearest(self, latitudes: Any, longitudes: Any) -> NDArray[np.int64]:
        return places.nearest(latitudes, longitudes, self.latitudes, self.longitudes)
