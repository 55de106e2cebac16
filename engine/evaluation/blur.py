"""Blur images with a Gaussian, in torch."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

# The Gaussian is truncated at 1 % of its peak.
_REACH = 3.0


def gaussian_blur(images: Tensor, sigma: float) -> Tensor:
    """Convolve with a Gaussian; the edge pixels are replicated outside the image.

    Args:
        images: float [B,C,H,W].
        sigma: standard deviation, pixels; > 0.

    Returns:
        float [B,C,H,W].
    """
    reach = math.ceil(_REACH * sigma)
    places = torch.arange(-reach, reach + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-0.5 * (places / sigma) ** 2)
    kernel = kernel / kernel.sum()
    channels = images.shape[1]
    padded = pad(images, (reach, reach, reach, reach), mode="replicate")
    across = conv2d(padded, kernel.expand(channels, 1, 1, -1), groups=channels)
    return conv2d(across, kernel[:, None].expand(channels, 1, -1, 1), groups=channels)
