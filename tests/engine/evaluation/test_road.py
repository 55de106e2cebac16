"""ROAD against a solution by hand, a direct solver, and pytorch-grad-cam."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from pytorch_grad_cam.metrics.road import NoisyLinearImputer, ROADCombined
from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget
from torch import Tensor, nn

from combicam.engine.evaluation.quantities import probability
from combicam.engine.evaluation.road import impute, road


def smooth(count: int, size: tuple[int, int], seed: int = 0) -> Tensor:
    coarse = torch.randn(count, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(coarse, size=size, mode="bilinear", align_corners=True)


def test_one_pixel_is_the_weighted_mean_of_its_neighbours() -> None:
    image = torch.arange(9.0).view(1, 1, 3, 3) ** 2
    middle, corner = torch.ones(2, 1, 3, 3, dtype=torch.bool)
    middle[0, 1, 1] = corner[0, 0, 0] = False
    sides, corners = 1 + 9 + 25 + 49, 0 + 4 + 36 + 64
    assert impute(image, middle, 1e-6)[0, 0, 1, 1] == pytest.approx(sides / 6 + corners / 12)
    # At the border the weights of the neighbours that exist are scaled to 1: 1/6, 1/6 and 1/12.
    assert impute(image, corner, 1e-6)[0, 0, 0, 0] == pytest.approx((2 * 1 + 2 * 9 + 16) / 5)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.995])
def test_imputation_is_that_of_a_direct_solver(share: float) -> None:
    images = smooth(2, (21, 30))
    kept = torch.rand(2, 21, 30, generator=torch.Generator().manual_seed(1)) >= share
    kept[1, :, :15] = False  # a large hole beside scattered pixels
    kept[1, 3, 20] = True
    for image, mask, found in zip(images, kept, impute(images, kept, 1e-6), strict=True):
        expected = NoisyLinearImputer(noise=0)(image, mask.float())
        torch.testing.assert_close(found, expected, atol=2e-4, rtol=0)
        assert torch.equal(found[:, mask], image[:, mask])


class Brightness(nn.Module):
    """Class 0 is the mean of the left half, class 1 of the right half."""

    def forward(self, images: Tensor) -> Tensor:
        half = images.shape[3] // 2
        return torch.stack(
            [images[..., :half].mean((1, 2, 3)), images[..., half:].mean((1, 2, 3))], 1
        )


def test_values_are_those_of_pytorch_grad_cam() -> None:
    network = Brightness()
    images = smooth(3, (20, 24), seed=3) * 2
    maps = torch.rand(3, 20, 24, generator=torch.Generator().manual_seed(4))
    targets = torch.tensor([0, 1, 0])
    morf, lerf = road(
        network, images, maps, probability(targets), [0, 1, 2], shares=(0.2, 0.5, 0.8)
    )
    torch.manual_seed(0)  # of its noise, which is another: 0.01, in the mean of 240 pixels
    theirs = ROADCombined(percentiles=[20, 50, 80])(
        images, maps.numpy(), [ClassifierOutputSoftmaxTarget(int(t)) for t in targets], network
    )
    np.testing.assert_allclose(((lerf - morf) / 2).numpy(), theirs, atol=2e-3)


class Texture(nn.Module):
    """Class 0 is the texture of the left half, class 1 of the right half."""

    def forward(self, images: Tensor) -> Tensor:
        steps = (images[..., 1:] - images[..., :-1]).abs()
        half = steps.shape[3] // 2
        sides = [steps[..., :half].mean((1, 2, 3)), steps[..., half:].mean((1, 2, 3))]
        return 4 * torch.stack(sides, 1)


def test_a_map_of_what_counts_beats_its_opposite_in_every_batch() -> None:
    images = torch.zeros(4, 3, 16, 16)
    images[..., :8] = torch.randn(4, 3, 16, 8, generator=torch.Generator().manual_seed(5))
    maps = torch.zeros(4, 16, 16)
    maps[:, :, :8] = 1

    def both(chosen: Sequence[int], given: Tensor, size: int) -> Tensor:
        of = probability(torch.zeros(len(chosen), dtype=torch.long))
        seeds = list(chosen)
        return torch.stack(road(Texture(), images[seeds], given[seeds], of, seeds, batch_size=size))

    good, bad = (both(range(4), m, 64) for m in (maps, 1 - maps))
    assert (good[0] < bad[0]).all() and (good[1] > bad[1]).all()  # MoRF low, LeRF high
    alone = both([2], maps, 3)
    torch.testing.assert_close(alone[:, 0], good[:, 2], atol=1e-5, rtol=0)
