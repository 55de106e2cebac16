"""Compute levels, ancestors and locations of S2 cells from their ids.

A cell's id consists of its face (3 bits), its position on the Hilbert curve of the face (2 bits per
level), a 1, and zeros. So the position of the last 1 gives its level, and its descendants are a
range of ids.

Source: https://s2geometry.io/devguide/s2cell_hierarchy
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import s2cell
from numpy.typing import NDArray

Ids = NDArray[np.uint64]

LEVELS = 30
# No cell of level L has a longer diagonal than DIAGONAL / 2^L radians (S2's kMaxDiag).
DIAGONAL = 2.438654594434021
_ONE = np.uint64(1)


def cell_id(token: str) -> int:
    """The id of the cell with a token such as ``89c25``.

    Raises:
        ValueError: an invalid token.
    """
    text = token.strip()
    if "." in text or "+" in text:
        raise ValueError(
            f"expected an S2 token, got {text!r}: a spreadsheet read it as a number; use the "
            "original file, or import that column as text"
        )
    if not s2cell.token_is_valid(text):
        raise ValueError(f"expected an S2 token, got {text!r}, which no S2 cell has")
    return s2cell.token_to_cell_id(text)


def are_cells(ids: Ids) -> NDArray[np.bool_]:
    """Which ids are valid, [n]."""
    return np.array([s2cell.cell_id_is_valid(int(i)) for i in ids], np.bool_)


def tokens(ids: Ids) -> tuple[str, ...]:
    """The cells' tokens: hexadecimal ids without trailing zeros."""
    return tuple(s2cell.cell_id_to_token(int(i)) for i in ids)


def centers(ids: Ids) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Latitudes and longitudes of the cells' centres, degrees."""
    pairs = np.array([s2cell.cell_id_to_lat_lon(int(i)) for i in ids], np.float64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def leaves(latitudes: Sequence[float], longitudes: Sequence[float]) -> Ids:
    """The leaf cell (level 30) of each location; longitudes may be beyond ±180."""
    lat, lon = np.asarray(latitudes, np.float64), np.asarray(longitudes, np.float64)
    lon = np.where(np.abs(lat) == 90, 0.0, np.where(lon == -180, 180.0, lon))
    pairs = zip(lat.tolist(), lon.tolist(), strict=True)
    return np.array([s2cell.lat_lon_to_cell_id(y, x) for y, x in pairs], np.uint64)


def last_bits(ids: Ids) -> Ids:
    """The lowest set bit of each id."""
    return ids & (~ids + _ONE)


def levels(ids: Ids) -> NDArray[np.int64]:
    """Levels of the cells, from 0 (a face) to 30 (about a square centimetre)."""
    # A power of two is exact as a float.
    return LEVELS - (np.log2(last_bits(ids).astype(np.float64)) / 2).astype(np.int64)


def ancestors(ids: Ids, level: int) -> Ids:
    """The ancestors of cells at a level, which is theirs or a coarser one."""
    bit = _ONE << np.uint64(2 * (LEVELS - level))
    return (ids & (~bit + _ONE)) | bit


def descendants(cell: int) -> tuple[int, int]:
    """First and last id of the cells inside a cell, including itself."""
    rest = (cell & -cell) - 1
    return cell - rest, cell + rest
