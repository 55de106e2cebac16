"""Baseline maps know the map's histogram and smoothness, or the image, and nothing else."""

from __future__ import annotations

import torch
from torch import Tensor

from combicam.engine.evaluation.baseline_maps import edge_baseline, random_baseline
from combicam.engine.evaluation.blur import gaussian_blur
from combicam.engine.evaluation.replacement import baseline_images
from combicam.export.preprocess import Preprocess

PREPROCESS = Preprocess((32, 32), (0.5, 0.4, 0.3), (0.2, 0.2, 0.1))


def blobs(count: int, sigma: float) -> Tensor:
    noise = torch.randn(count, 1, 48, 40)
    return gaussian_blur(noise, sigma)[:, 0].clamp_min(0)


def test_the_random_baseline_is_the_map_elsewhere() -> None:
    maps = blobs(6, 4.0)
    shifted = random_baseline(maps, range(6))
    assert torch.equal(shifted.flatten(1).sort().values, maps.flatten(1).sort().values)
    for one, other in zip(maps, shifted, strict=True):
        shifts = [(i, j) for i in range(48) for j in range(40)]
        found = [shift for shift in shifts if torch.equal(one.roll(shift, (0, 1)), other)]
        assert len(found) == 1 and found != [(0, 0)]


def test_a_blob_may_lie_anywhere() -> None:
    maps = torch.zeros(400, 12, 10)
    maps[:, 2:4, 3:5] = torch.tensor([[4.0, 3.0], [2.0, 1.0]])
    found = random_baseline(maps, range(400)).mean(0)
    assert (found > 0).all()  # 400 blobs of 4 pixels on 120
    for half in (found[:6], found[:, :5]):
        assert 0.4 < half.sum() / found.sum() < 0.6


def test_the_seed_alone_says_where() -> None:
    maps = blobs(3, 3.0)
    shifted = random_baseline(maps, [5, 6, 7])
    torch.testing.assert_close(random_baseline(maps[1:2], [6]), shifted[1:2])
    assert not torch.equal(random_baseline(maps[1:2], [9]), shifted[1:2])
    assert torch.equal(random_baseline(torch.ones(1, 4, 4), [0]), torch.ones(1, 4, 4))


def test_edges_are_where_the_picture_changes() -> None:
    images = torch.zeros(2, 3, 50, 50)
    images[0, :, :, 25:] = 1  # an upright edge between columns 24 and 25
    edges = edge_baseline(images)
    assert edges[0].amax(0).argmax().item() in (24, 25)
    assert edges[0, :, :15].max() < 1e-3 < edges[0, :, 25].min()
    assert torch.equal(edges[1], torch.zeros(50, 50))  # nothing changes there
    torch.testing.assert_close(edge_baseline(images.transpose(2, 3))[0], edges[0].T)


def test_blurring_keeps_the_mean_and_the_symmetry() -> None:
    torch.testing.assert_close(gaussian_blur(torch.ones(1, 2, 9, 7), 2.0), torch.ones(1, 2, 9, 7))
    dot = torch.zeros(1, 1, 41, 41)
    dot[0, 0, 20, 20] = 1
    blurred = gaussian_blur(dot, 3.0)
    places = torch.arange(41) - 20.0
    variance = (blurred[0, 0].sum(0) * places.square()).sum()
    assert abs(variance.sqrt() - 3.0) < 0.1
    torch.testing.assert_close(blurred, blurred.flip(2).flip(3))


def test_baselines() -> None:
    images = PREPROCESS.normalize(torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8))
    assert not baseline_images(images, "mean", PREPROCESS).any()
    black = PREPROCESS.normalize(torch.zeros(2, 32, 32, 3, dtype=torch.uint8))
    torch.testing.assert_close(baseline_images(images, "black", PREPROCESS), black)
    blurred = baseline_images(images, "blur", PREPROCESS)
    assert (blurred.var((2, 3)) < 0.2 * images.var((2, 3))).all()
    torch.testing.assert_close(blurred.mean((2, 3)), images.mean((2, 3)), atol=0.1, rtol=0)
