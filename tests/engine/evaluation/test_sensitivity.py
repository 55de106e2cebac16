"""Sensitivity-n on a model whose answer is a sum over pixels."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import pearsonr
from torch import Tensor

from combicam.engine.evaluation.sensitivity import random_regions, region_drops, sensitivity


def first_channel(images: Tensor) -> Tensor:
    return images[:, :1].mean((2, 3))


def read(logits: Tensor, owners: Tensor) -> Tensor:
    return logits[:, 0]


@pytest.mark.parametrize("size", [(28, 35), (30, 45)])  # cells of one size, and of several
def test_the_contributions_of_a_sum_are_perfectly_sensitive(size: tuple[int, int]) -> None:
    images = torch.rand(3, 3, *size, generator=torch.Generator().manual_seed(0))
    regions = random_regions([5, 6, 7], 16)
    assert (regions.sum((2, 3)) == 12).all()
    blank = torch.zeros_like(images)
    whole = first_channel(images)
    drops = region_drops(first_channel, images, blank, regions, read, whole, batch_size=5)
    torch.testing.assert_close(
        sensitivity(images[:, 0], regions, drops), torch.ones(3), atol=1e-4, rtol=0
    )
    torch.testing.assert_close(
        sensitivity(-images[:, 0], regions, drops), -torch.ones(3), atol=1e-4, rtol=0
    )
    alone = random_regions([6], 16)
    assert torch.equal(alone[0], regions[1])


def test_it_is_pearsons_correlation_of_sums_and_drops() -> None:
    regions = random_regions([1], 20)
    maps = torch.rand(1, 14, 14, generator=torch.Generator().manual_seed(2))
    drops = torch.rand(1, 20, generator=torch.Generator().manual_seed(3))
    larger = regions[0].repeat_interleave(2, 1).repeat_interleave(2, 2)
    sums = (larger * maps).sum((1, 2))
    expected = pearsonr(sums.numpy(), drops[0].numpy()).statistic
    assert float(sensitivity(maps, regions, drops)) == pytest.approx(expected, abs=1e-6)


def test_a_constant_map_or_answer_says_nothing() -> None:
    regions = random_regions([1, 2], 8)
    maps = torch.rand(2, 14, 14)
    maps[0] = 0
    drops = torch.rand(2, 8)
    drops[1] = 0.25
    assert sensitivity(maps, regions, drops).isnan().all()
