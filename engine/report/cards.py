"""Make the cards of a report: a row with its image, maps and columns."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from combicam.cores import usable_cores
from combicam.engine.images.resize import visible_box
from combicam.engine.inputs.entry import Entry
from combicam.engine.inputs.manifest import Manifest
from combicam.engine.report.packed_maps import pack_maps
from combicam.engine.report.thumbnails import RunFacts, picture
from combicam.engine.run.open_run import OpenRun
from combicam.engine.shards.status import OK
from combicam.engine.shards.stored_maps import MAP_COLUMNS

_DIGITS = 6
# Columns that the page shows in its own way; other columns with scalar values are listed.
_KNOWN = frozenset(
    {
        "id",
        "uri",
        "status",
        "error",
        "width",
        "height",
        "targets",
        "scores",
        *MAP_COLUMNS,
        "low",
        "high",
        "flat",
        "places",
        "class_name",
        "lat",
        "lon",
        "true_lat",
        "true_lon",
        "error_km",
    }
)


class Cards:
    """Makes cards and caches them, so that updating the report of a running run is cheap."""

    def __init__(self) -> None:
        self._made: dict[tuple[int, str], dict[str, Any]] = {}

    def of(self, run: OpenRun, facts: RunFacts, rows: NDArray[np.int64]) -> list[dict[str, Any]]:
        """Cards of rows, in order; JSON-ready. Maps of other rows are not read.

        Args:
            run: of the rows.
            facts: of the run.
            rows: indices among the committed rows.
        """
        groups = _by_group(run, rows)
        with Manifest(run.layout.manifest) as manifest:
            shards = {shard: manifest.shard(shard) for shard in {g.shard for g in groups}}
        with ThreadPoolExecutor(usable_cores()) as pool:
            done = pool.map(lambda group: self._group(run, facts, group, shards), groups)
            cards = {row: card for cards in done for row, card in cards.items()}
        self._made = {(row, card["status"]): card for row, card in cards.items()}
        return [cards[int(row)] for row in rows]

    def _group(
        self, run: OpenRun, facts: RunFacts, group: _Group, shards: Mapping[int, list[Entry]]
    ) -> dict[int, dict[str, Any]]:
        statuses = group.read(["status"]).column("status").to_pylist()
        known = {
            row: self._made.get((row, status))
            for row, status in zip(group.rows, statuses, strict=True)
        }
        if all(card is not None for card in known.values()):
            return {row: card for row, card in known.items() if card is not None}
        values = group.read(None).to_pylist()
        cards = {}
        for row, local, columns in zip(group.rows, group.places, values, strict=True):
            entry = shards[group.shard][local]
            cards[row] = known[row] or _card(columns, entry, run, facts)
        return cards


class _Group:
    """Selected rows of one row group of a shard.

    ``rows`` are indices in the run, ``places`` in the shard, ``taken`` in the row group.
    """

    def __init__(self, fragment: Any, shard: int, rows: list[int], first: int, start: int) -> None:
        self._fragment = fragment
        self.shard = shard
        self.rows = rows
        self.places = [row - first for row in rows]
        self._taken = [row - first - start for row in rows]

    def read(self, columns: list[str] | None) -> Any:
        """``pyarrow.Table`` of the rows."""
        return self._fragment.to_table(columns=columns).take(self._taken)


def _by_group(run: OpenRun, rows: NDArray[np.int64]) -> list[_Group]:
    """Locate the selected rows by the footers of the shards."""
    wanted = np.sort(rows)
    groups, first = [], 0
    for shard, fragment in zip(run.shards, run.dataset.get_fragments(), strict=True):
        start = first
        for group in fragment.row_groups:
            inside = wanted[(wanted >= start) & (wanted < start + group.num_rows)]
            if len(inside):
                part = fragment.subset(row_group_ids=[group.id])
                groups.append(_Group(part, shard, inside.tolist(), first, start - first))
            start += group.num_rows
        first = start
    return groups


def _card(row: Mapping[str, Any], entry: Entry, run: OpenRun, facts: RunFacts) -> dict[str, Any]:
    card: dict[str, Any] = {
        "id": row["id"],
        "status": row["status"],
        "error": row["error"],
        "size": [row["width"], row["height"]],
        "more": {
            name: _plain(value)
            for name, value in row.items()
            if name not in _KNOWN and isinstance(value, (str, int, float)) and value is not None
        },
    }
    for name in ("class_name", "lat", "lon", "true_lat", "true_lon", "error_km"):
        if row.get(name) is not None:
            card[name] = row[name]  # in full precision: the page looks the location up by it
    if row["status"] != OK:
        return card
    photo = (row["width"], row["height"])
    card |= {
        "targets": row["targets"],
        "scores": [_plain(score) for score in row["scores"]],
        "ranges": [[_plain(a), _plain(b)] for a, b in zip(row["low"], row["high"], strict=True)],
        "flat": row["flat"],
        "box": _shares(visible_box(photo, facts.preprocess), photo),
        "maps": pack_maps(row, run.maps),
    }
    if row.get("places"):
        card["places"] = [
            {key: _plain(value) for key, value in place.items()} for place in row["places"]
        ]
    return card | picture(entry, photo, facts.max_pixels)


def _shares(box: tuple[float, float, float, float], photo: tuple[int, int]) -> list[float]:
    """Left, top, width and height of a box, as shares of the image's width and height."""
    (left, top, right, bottom), (width, height) = box, photo
    shares = (left / width, top / height, (right - left) / width, (bottom - top) / height)
    return [round(share, 5) for share in shares]


def _plain(value: Any) -> Any:
    """Values for JSON: numbers with few digits, None if not finite."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.{_DIGITS}g}") if np.isfinite(value) else None
