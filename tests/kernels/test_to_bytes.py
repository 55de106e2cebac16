"""Maps to bytes."""

from __future__ import annotations

import pytest
import torch

from combicam.kernels.to_bytes import BLOCK, launch_to_bytes, to_bytes, to_bytes_reference

SHAPES = [(1, 1, 1, 1), (3, 2, 41, 37), (2, 1, 64, 64), (2, 3, 1, BLOCK + 1)]
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def test_reference_by_hand() -> None:
    halves = torch.tensor([0.5, 1.5, 2.5, 253.5]) / 255  # of which 255 x is exact
    maps = torch.tensor([*halves, 1.0, -0.1, 1.1, torch.nan]).view(1, 1, 2, 4)
    found, finite = to_bytes(torch.cat([maps, maps.nan_to_num(0.0)]))
    assert found[0].flatten().tolist() == [0, 2, 2, 254, 255, 0, 255, 0]
    assert finite.tolist() == [False, True]
    highs = torch.tensor([[2.0], [0.0]])
    found, _ = to_bytes(torch.stack([maps[0] * 2, maps[0] * 0]), highs)
    assert found[0].flatten().tolist() == [0, 2, 2, 254, 255, 0, 255, 0]
    assert found[1].max() == 0


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_kernel(shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(shape, generator=generator)
    maps.flatten()[:256] = (torch.arange(256)[: maps.numel()] + 0.5) / 255  # between two bytes
    maps = maps.to(dtype)
    for highs in (None, maps.float().amax((2, 3))):
        found = launch_to_bytes(maps.to(device), None if highs is None else highs.to(device))
        for ours, expected in zip(found, to_bytes_reference(maps, highs), strict=True):
            assert torch.equal(ours.cpu(), expected)
        assert found[1].all()


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_kernel_finds_what_is_not_finite(value: float, device: torch.device) -> None:
    maps = torch.rand(4, 2, 3, BLOCK, generator=torch.Generator().manual_seed(0))
    maps[1, 1, 2, -1] = maps[2, 0, 0, 0] = value
    for highs in (None, torch.tensor([[1.0, 1.0], [1.0, value], [1.0, 0.0], [0.0, 1.0]])):
        found = launch_to_bytes(maps.to(device), None if highs is None else highs.to(device))
        for ours, expected in zip(found, to_bytes_reference(maps, highs), strict=True):
            assert torch.equal(ours.cpu(), expected)
        assert found[1].tolist() == [True, False, False, True]


def test_kernel_of_maps_with_other_strides(device: torch.device) -> None:
    maps = torch.rand(2, 5, 6, 3, generator=torch.Generator().manual_seed(0)).permute(0, 3, 1, 2)
    ours, _ = launch_to_bytes(maps.to(device))
    assert ours.shape == maps.shape and torch.equal(ours.cpu(), to_bytes_reference(maps)[0])
