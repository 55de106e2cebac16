"""Images in rows and columns: where they are, and what is written beside them."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from combicam.engine.drawing.image_table import TableRow, draw_image_table

TITLES = [("Input", "of the network"), ("Grad-CAM", "last block")]


def images(count: int, height: int = 90, width: int = 120) -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for _ in range(count)]


def corner(table: NDArray[np.uint8], image: NDArray[np.uint8]) -> tuple[int, int]:
    """(y, x) of the only place where the table has the image, unchanged."""
    height, width, _ = image.shape
    first = (table[: 1 - height, : 1 - width] == image[0, 0]).all(-1)
    places = [
        (int(y), int(x))
        for y, x in np.argwhere(first)
        if np.array_equal(table[y : y + height, x : x + width], image)
    ]
    assert len(places) == 1
    return places[0]


def test_images_are_aligned_and_nothing_is_written_over_them() -> None:
    a, b, c, d = images(4)
    rows = [TableRow("a word " * 9, "12.0%", [a, b]), TableRow("tripod", "93.8%", [c, d])]
    table = draw_image_table(rows, TITLES, "footer " * 99)
    places = [corner(table, image) for image in (a, b, c, d)]
    assert [y for y, _ in places] == sorted(y for y, _ in places)
    assert places[0][0] == places[1][0] < places[2][0] == places[3][0]
    assert places[0][1] == places[2][1] < places[1][1] == places[3][1]
    assert (table[[0, -1]] == 255).all() and (table[:, [0, -1]] == 255).all()


def test_words_are_at_their_places() -> None:
    (image,) = images(1)
    blank = draw_image_table([TableRow("", "", [image])], [("", "")])
    y, x = corner(blank, image)
    above, left = np.s_[:y, x:], np.s_[y : y + 90, :x]
    below = np.s_[y + 90 :, : blank.shape[1] // 2]
    for row, title, footer, place in (
        (TableRow("", "", [image]), ("Grad-CAM", ""), "", above),
        (TableRow("", "", [image]), ("", "last block"), "", above),
        (TableRow("tripod", "", [image]), ("", ""), "", left),
        (TableRow("", "93.8%", [image]), ("", ""), "", left),
        (TableRow("", "", [image]), ("", ""), "CC0", below),
    ):
        changed = draw_image_table([row], [title], footer) != blank
        assert changed[place].any()
        changed[place] = False
        assert not changed.any()


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [TableRow("one", "", images(1))],
        [TableRow("two", "", images(2)), TableRow("one", "", images(1))],
        [TableRow("two", "", [*images(1), *images(1, 80)])],
    ],
)
def test_tables_with_gaps_are_refused(rows: list[TableRow]) -> None:
    with pytest.raises(ValueError, match=r"image table: expected rows of 2 images of one size"):
        draw_image_table(rows, TITLES)
