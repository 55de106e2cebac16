"""The planet: what its codes promise, and what a postcard promises."""

from __future__ import annotations

import hashlib
import itertools
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from combicam.demo.cues import ATTRIBUTES
from combicam.demo.planet import CELLS, PLANTED, SIDES, postcard


def digest(cell: int, seed: int) -> str:
    card = postcard(cell, seed)
    return hashlib.sha256(card.image.tobytes() + card.mask.tobytes()).hexdigest()


def test_cells_are_numbered_named_and_spread() -> None:
    assert len(CELLS) >= 32
    assert [cell.index for cell in CELLS] == list(range(len(CELLS)))
    assert len({cell.name for cell in CELLS}) == len(CELLS)
    latitudes = [cell.latitude for cell in CELLS]
    longitudes = [cell.longitude for cell in CELLS]
    assert min(latitudes) < -40 and max(latitudes) > 60
    assert min(longitudes) < -140 and max(longitudes) > 160
    for one, other in itertools.combinations(CELLS, 2):
        assert abs(one.latitude - other.latitude) + abs(one.longitude - other.longitude) > 4


def test_every_value_of_every_attribute_is_shared_equally() -> None:
    for place, values in enumerate(ATTRIBUTES.values()):
        counts = Counter(cell.cues[place] for cell in CELLS)
        assert set(counts) == set(values)
        assert set(counts.values()) == {len(CELLS) // len(values)}


def test_two_cues_leave_doubt_and_three_decide() -> None:
    for places in itertools.combinations(range(len(ATTRIBUTES)), 2):
        shared = Counter(tuple(cell.cues[p] for p in places) for cell in CELLS)
        assert max(shared.values()) >= 2
    for places in itertools.combinations(range(len(ATTRIBUTES)), 3):
        assert len({tuple(cell.cues[p] for p in places) for cell in CELLS}) == len(CELLS)


def test_any_two_cells_differ_in_four_attributes() -> None:
    for one, other in itertools.combinations(CELLS, 2):
        assert sum(a != b for a, b in zip(one.cues, other.cues, strict=True)) >= 4


def test_the_same_arguments_give_the_same_pixels_in_another_process() -> None:
    code = (
        "import hashlib; from combicam.demo.planet import postcard; c = postcard(7, 11);"
        "print(hashlib.sha256(c.image.tobytes() + c.mask.tobytes()).hexdigest())"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    np.random.seed(3)
    assert other.stdout.strip() == digest(7, 11) == digest(7, 11)


def test_seeds_and_cells_give_different_pictures() -> None:
    assert len({digest(cell, seed) for cell in (0, 1, 35) for seed in (0, 1, 2)}) == 9


@pytest.mark.parametrize("size", [None, (128, 128), (128, 192), (192, 128), (131, 157)])
def test_a_postcard_is_well_formed(size: tuple[int, int] | None) -> None:
    for seed in range(40):
        cell = seed % len(CELLS)
        card = postcard(cell, seed, size)
        H, W = card.mask.shape
        assert card.image.shape == (H, W, 3) and card.image.dtype == np.uint8
        assert card.mask.dtype == np.bool_ and card.cell == cell
        assert (H, W) == size if size else all(SIDES[0] <= side <= SIDES[1] for side in (H, W))
        assert 0.004 < card.mask.mean() < 0.2
        names = list(ATTRIBUTES)
        assert len(card.cues) == PLANTED
        boxed = np.zeros_like(card.mask)
        for cue in card.cues:
            assert cue.value == CELLS[cell].cues[names.index(cue.attribute)]
            left, top, right, bottom = cue.box
            assert 6 <= max(right - left, bottom - top) <= 48
            assert card.mask[top:bottom, left:right].any()
            boxed[top:bottom, left:right] = True
        assert not (card.mask & ~boxed).any()


def test_cues_move_about_the_picture() -> None:
    centres = [
        ((left + right) / 320, (top + bottom) / 320)
        for seed in range(60)
        for left, top, right, bottom in (
            cue.box for cue in postcard(seed % 36, seed, (160, 160)).cues
        )
    ]
    assert np.std(centres, axis=0).min() > 0.1


def test_drawn_sizes_vary_in_both_directions() -> None:
    shapes = [postcard(0, seed).mask.shape for seed in range(30)]
    assert any(H > W for H, W in shapes) and any(W > H for H, W in shapes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((99, 0), r"expected cell in 0\.\.35, got 99; "),
        ((-1, 0), r"expected cell in 0\.\.35, got -1; "),
        ((0, -5), r"expected a seed >= 0, got -5; "),
        ((0, 0, (64, 160)), r"expected size \(H, W\) with sides 128\.\.192, got \(64, 160\); "),
    ],
)
def test_bad_arguments_are_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=f"postcard: {message}"):
        postcard(*arguments)
