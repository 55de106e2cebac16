"""Bytes to a network's input."""

from __future__ import annotations

import pytest
import torch

from combicam.export.preprocess import IMAGENET_MEAN, IMAGENET_STD
from combicam.kernels import normalize, normalize_reference
from combicam.kernels.normalize import DTYPES, define, launch_normalize


def photos(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (*shape, 3), dtype=torch.uint8, generator=generator)


def test_reference_by_hand() -> None:
    images = torch.tensor([0, 127, 255], dtype=torch.uint8).view(1, 1, 1, 3)
    out = normalize(images, (0.5, 0.5, 0.0), (0.5, 0.25, 2.0))
    expected = torch.tensor([-1.0, (127 / 255 - 0.5) / 0.25, 0.5]).view(1, 3, 1, 1)
    torch.testing.assert_close(out, expected)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 41, 37), (2, 64, 64)])
def test_kernel(dtype: torch.dtype, shape: tuple[int, int, int], device: torch.device) -> None:
    images = photos(*shape)
    out = launch_normalize(images.to(device), IMAGENET_MEAN, IMAGENET_STD, dtype).cpu()
    expected = normalize_reference(images, IMAGENET_MEAN, IMAGENET_STD, dtype)
    assert out.dtype == dtype and out.is_contiguous(memory_format=torch.channels_last)
    # One unit in the last place, where a product and a difference round once instead of twice.
    unit = torch.finfo(dtype).eps * 4
    torch.testing.assert_close(out.float(), expected.float(), atol=unit, rtol=0)


@pytest.mark.usefixtures("poisoned")
def test_kernel_of_one_channel(device: torch.device) -> None:
    images = photos(2, 41, 37)[..., :1].contiguous()
    out = launch_normalize(images.to(device), (0.449,), (0.226,), torch.float32).cpu()
    expected = normalize_reference(images, (0.449,), (0.226,), torch.float32)
    assert out.shape == (2, 1, 41, 37)
    torch.testing.assert_close(out, expected, atol=5e-7, rtol=0)


def test_opcheck() -> None:
    arguments = (photos(2, 5, 4), list(IMAGENET_MEAN), list(IMAGENET_STD), torch.float16)
    define()
    result = torch.library.opcheck(torch.ops.combicam.normalize, arguments)
    assert set(result.values()) == {"SUCCESS"}


def test_other_images_are_refused() -> None:
    for images in (photos(2, 5, 4).float(), photos(5, 4), photos(2, 5, 4).permute(0, 3, 1, 2)):
        with pytest.raises(ValueError, match=r"expected uint8 \[B,H,W,3\], got"):
            normalize(images, IMAGENET_MEAN, IMAGENET_STD)
