"""The projection onto the first principal component, against an SVD in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from combicam.kernels.principal import principal_projection


def by_svd(x: Tensor) -> tuple[Tensor, Tensor]:
    """[N,C,P] -> the projections [N,P], and the singular values."""
    centred = x.double() - x.double().mean(-1, keepdim=True)
    left, values, _ = torch.linalg.svd(centred, full_matrices=False)
    v = left[:, :, 0]
    v = v * torch.where(v.sum(-1, keepdim=True) < 0, -1, 1)
    return torch.einsum("nc,ncp->np", v, centred), values


def with_values(values: Tensor, channels: int, pixels: int) -> Tensor:
    """Three matrices [C,P] of these singular values, apart from their mean."""
    random = torch.randn(3, pixels, len(values), dtype=torch.float64)
    right = torch.linalg.qr(random - random.mean(1, keepdim=True)).Q
    left = torch.linalg.qr(torch.randn(3, channels, len(values), dtype=torch.float64)).Q
    return (left * values) @ right.mT


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float(((found - expected).abs().amax(-1) / expected.abs().amax(-1)).max())


@pytest.mark.parametrize(
    ("channels", "pixels"),
    [(1, 9), (9, 1), (3, 400), (400, 3), (64, 64), (24, 5000), (512, 196), (130, 257)],
)
def test_equals_an_svd(channels: int, pixels: int) -> None:
    x = torch.randn(3, channels, pixels).relu()
    expected, values = by_svd(x)
    found = principal_projection(x)
    assert found.dtype == torch.float32 and found.shape == (3, pixels)
    if pixels == 1:
        assert (found == 0).all()
    else:
        gap = float((1 - values[:, 1] / values[:, 0]).min()) if channels > 1 else 1.0
        assert relative_error(found, expected) < 4e-6 + 1e-7 / gap


@pytest.mark.parametrize("shape", [(30, 50), (50, 30)])
@pytest.mark.parametrize("gap", [1e-1, 1e-2, 1e-3, 1e-4])
def test_close_singular_values(gap: float, shape: tuple[int, int]) -> None:
    """The error grows as rounding over the gap, as the docstring says."""
    values = torch.linspace(0.9, 0.1, 20, dtype=torch.float64)
    values[:2] = torch.tensor([1.0, 1.0 - gap])
    x = with_values(values, *shape).float()
    expected, found_values = by_svd(x)
    assert (found_values[:, 1] / found_values[:, 0] - (1 - gap)).abs().max() < 1e-6
    assert relative_error(principal_projection(x), expected) < 2e-6 + 1e-7 / gap


def test_equal_singular_values_give_a_mixture_of_the_largest_variance() -> None:
    values = torch.tensor([1.0, 1.0, 1.0, 0.5], dtype=torch.float64)
    found = principal_projection(with_values(values, 12, 30).float())
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(3), atol=1e-5, rtol=0)


@pytest.mark.parametrize("scale", [1e-35, 1e-20, 1e20, 1e35])
def test_sizes_that_squares_do_not_survive(scale: float) -> None:
    x = torch.randn(2, 7, 30)
    found = principal_projection(x * scale) / scale
    torch.testing.assert_close(found, principal_projection(x), atol=1e-5, rtol=1e-4)


def test_the_sign_is_that_of_the_sum_over_channels() -> None:
    x = torch.randn(16, 5, 40)
    found = principal_projection(x)
    total = x.sum(1) - x.sum(1).mean(-1, keepdim=True)
    assert ((found * total).sum(-1) >= 0).all()
    flipped = principal_projection(-x)
    torch.testing.assert_close(flipped, -found, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("value", [0.0, 0.1, -1e6])
def test_constant_channels_give_zeros(value: float) -> None:
    x = torch.full((2, 3, 49), value)
    x[1] = torch.randn(3, 49)
    found = principal_projection(x)
    assert (found[0] == 0).all() and found[1].std() > 0.5
