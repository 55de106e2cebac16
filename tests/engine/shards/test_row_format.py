"""Columns of bytes are made of arrays, not of Python's objects."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from combicam.engine.shards import row_format
from combicam.engine.shards.row_format import binary_column


@pytest.mark.parametrize("present", [[True] * 9, [True, False, False, True] * 5, [False] * 3, []])
@pytest.mark.parametrize("most", [2**31 - 1, 10])
@pytest.mark.parametrize("width", [3, 0, 40])
def test_rows_of_bytes(
    present: list[bool], most: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_format, "_MOST_BYTES", most)
    mask = np.array(present, bool)
    values = np.random.default_rng(0).integers(0, 256, (mask.sum(), width), dtype=np.uint8)
    column = binary_column(values, mask)
    column.validate(full=True)
    rest = iter(values)
    expected = [next(rest).tobytes() if there else None for there in present]
    assert column.type == pa.binary() and column.to_pylist() == expected
    assert column.null_count == present.count(False)


def test_the_memory_is_that_of_the_array() -> None:
    values = np.zeros((4, 5), np.uint8)
    column = binary_column(values, np.ones(4, bool))
    assert column.chunk(0).buffers()[2].address == values.ctypes.data
