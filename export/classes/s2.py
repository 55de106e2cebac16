"""Compute levels, ancestors and cells of locations from the numbers of S2 cells.

A cell's number is its face (3 bits), its position on the Hilbert curve of the face (2 bits per
level), a 1, and zeros. So its level is where the last 1 stands, and its descendants are a range of
numbers.

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
    """The number of the cell with a token such as ``89c25``.

    Raises:
        ValueError: the token of no cell.
    """
    text = token.strip()
    if "." in text or "+" in text:
        raise ValueError(
            f"expected an S2 token, got {text!r}: a spreadsheet took it for a number; take the "
            "original file, or import that column as text"
        )
    if not s2cell.token_is_valid(text):
        raise ValueError(f"expected an S2 token, got {text!r}: no cell of S2 has it")
    return s2cell.token_to_cell_id(text)


def are_cells(ids: Ids) -> NDArray[np.bool_]:
    """Which numbers are those of cells, [n]."""
    return np.array([s2cell.cell_id_is_valid(int(i)) for i in ids], np.bool_)


def tokens(ids: Ids) -> tuple[str, ...]:
    """The cells' tokens: hexadecimal numbers without the zeros at their end."""
    return tuple(s2cell.cell_id_to_token(int(i)) for i in ids)


def centers(ids: Ids) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Latitudes and longitudes of the cells' centres, degrees."""
    pairs = np.array([s2cell.cell_id_to_lat_lon(int(i)) for i in ids], np.float64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def leaves(latitudes: Sequence[float], longitudes: Sequence[float]) -> Ids:
    """The smallest cell (level 30) of each location, however its longitude is written."""
    lat, lon = np.asarray(latitudes, np.float64), np.asarray(longitudes, np.float64)
    lon = np.where(np.abs(lat) == 90, 0.0, np.where(lon == -180, 180.0, lon))
    pairs = zip(lat.tolist(), lon.tolist(), strict=True)
    return np.array([s2cell.lat_lon_to_cell_id(y, x) for y, x in pairs], np.uint64)


def last_bits(ids: Ids) -> Ids:
    """The cells' last 1."""
    return ids & (~ids + _ONE)


def levels(ids: Ids) -> NDArray[np.int64]:
    """Of the cells, 0 (a face) to 30 (about a square centimetre)."""
    # A power of two is exact as a float.
    return LEVELS - (np.log2(last_bits(ids).astype(np.float64)) / 2).astype(np.int64)


def ancestors(ids: Ids, level: int) -> Ids:
    """The cells of a level that hold the given ones, which are of that level or below."""
    bit = _ONE << np.uint64(2 * (LEVELS - level))
    return (ids & (~bit + _ONE)) | bit


def descendants(cell: int) -> tuple[int, int]:
    """First and last number of the cells inside of a cell, itself included."""
    rest = (cell & -cell) - 1
    return cell - rest, cell + rest
