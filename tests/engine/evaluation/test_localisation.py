"""Pointing, energy and overlap, by hand and by brute force."""

from __future__ import annotations

import pytest
import torch

from combicam.engine.evaluation.energy import energy_inside
from combicam.engine.evaluation.overlap import best_iou, iou
from combicam.engine.evaluation.pointing_game import pointing_game


def dot(row: int, column: int, size: int = 9) -> torch.Tensor:
    maps = torch.zeros(1, size, size)
    maps[0, row, column] = 1
    return maps


@pytest.mark.parametrize(("tolerance", "hit"), [(0, 0), (4.9, 0), (5, 1), (15, 1)])
def test_the_tolerance_is_a_radius(tolerance: float, hit: int) -> None:
    # 3 down and 4 across: five pixels away.
    assert pointing_game(dot(1, 2), dot(4, 6) > 0, tolerance).item() == hit


def test_the_maximum_counts_and_of_equals_the_first() -> None:
    maps = dot(0, 0) + dot(8, 8)
    assert pointing_game(maps, dot(0, 0) > 0, 0).item() == 1
    assert pointing_game(maps, dot(8, 8) > 0, 0).item() == 0
    assert pointing_game(maps + dot(8, 8) * 0.1, dot(8, 8) > 0, 0).item() == 1


def test_without_evidence_there_is_no_answer() -> None:
    maps, nothing = dot(1, 1), torch.zeros(1, 9, 9, dtype=torch.bool)
    assert pointing_game(maps, nothing).isnan().all()
    assert best_iou(maps, nothing).isnan().all()
    assert energy_inside(torch.zeros(1, 9, 9), maps > 0).isnan().all()


def test_energy_by_hand() -> None:
    maps = torch.tensor([[[0.4, 0.3], [0.2, 0.1]]])
    masks = torch.tensor([[[True, False], [False, True]]])
    assert energy_inside(maps, masks).item() == pytest.approx(0.5)
    assert energy_inside(maps * 7, masks).item() == pytest.approx(0.5)
    assert energy_inside(maps, torch.ones_like(masks)).item() == 1


def test_iou_by_hand() -> None:
    maps = torch.tensor([[[1.0, 0.6], [0.5, 0.2]]])
    masks = torch.tensor([[[True, False], [True, True]]])
    assert iou(maps, masks, 0.5).item() == pytest.approx(2 / 4)
    assert iou(maps, masks, 0.1).item() == pytest.approx(3 / 4)
    assert best_iou(maps, masks).item() == pytest.approx(3 / 4)


@pytest.mark.parametrize("levels", [1, 3, 1000])
def test_best_iou_is_the_best_of_all_thresholds(levels: int) -> None:
    """Few levels: a threshold cannot split pixels of one value."""
    maps = (torch.rand(5, 7, 6) * levels).floor()
    masks = torch.rand(5, 7, 6) > 0.7
    for one, mask, best in zip(maps, masks, best_iou(maps, masks), strict=True):
        found = [iou(one[None], mask[None], t.item()).item() for t in one.unique()]
        assert best.item() == pytest.approx(max(found))
