"""Resized photos: the kernel gives the bytes of torch's operator on a CPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from combicam.kernels.resample import Strip, launch_resample, resampled_axis

Size = tuple[int, int]


def on_cpu(image: Tensor, size: Size, mode: str) -> Tensor:
    """uint8 [h,w,C]."""
    planes = image.cpu().permute(2, 0, 1)[None]  # strides stay those of the channels last
    found = torch.nn.functional.interpolate(planes, size=size, mode=mode, antialias=True)
    return found[0].permute(1, 2, 0)


def by_kernel(images: list[Tensor], size: Size, mode: str) -> list[Tensor]:
    """One launch for an axis; 7 where nothing was written."""
    height, width = size
    first, second, outputs, kept = [], [], [], []
    for image in images:
        h, w, c = image.shape
        across = resampled_axis(w, width, 0, width, mode)
        down = resampled_axis(h, height, 0, height, mode)
        between = torch.full((h, width, c), 7, dtype=torch.uint8, device=image.device)
        output = torch.full((height, width, c), 7, dtype=torch.uint8, device=image.device)
        row, source, target = width * c, between.data_ptr(), output.data_ptr()
        first.append(Strip(image.data_ptr(), w * c, c, source, row, c, h, across))
        second.append(Strip(source, c, row, target, c, row, width, down))
        outputs.append(output)
        kept.append(between)
    launch_resample((first, second), images[0].shape[2], images[0].device)
    if images[0].is_cuda:
        torch.cuda.synchronize()
    return outputs


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("channels", [1, 3])
def test_bytes_are_those_of_the_cpu(mode: str, channels: int, device: torch.device) -> None:
    """Of images that shrink and grow, by factors that are whole and others, together."""
    random = np.random.default_rng(0)
    images = [
        torch.from_numpy(random.integers(0, 256, (*size, channels), np.uint8)).to(device)
        for size in ((50, 37), (20, 100), (1, 1), (97, 9), (40, 30), (50, 37))
    ]
    images[-1] = (images[-1] > 127).byte() * 255  # overshoots
    for image, found in zip(images, by_kernel(images, (40, 33), mode), strict=True):
        assert torch.equal(found.cpu(), on_cpu(image, (40, 33), mode))


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_a_part_of_an_axis(mode: str) -> None:
    whole, part = resampled_axis(300, 96, 0, 96, mode), resampled_axis(300, 96, 10, 50, mode)
    assert np.array_equal(part.weights, whole.weights[10:60])
    assert np.array_equal(part.start, whole.start[10:60])
    assert part.bits == whole.bits and part.reach[0] > 0 and part.reach[1] < 300
    last = part.start[-1] + np.flatnonzero(part.weights[-1])[-1]
    assert part.reach[0] == part.start[0] and part.reach[1] > last
