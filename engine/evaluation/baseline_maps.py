"""Make baseline maps, which do not depend on the model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from combicam.engine.evaluation.blur import gaussian_blur
from combicam.kernels.extremes import min_max

# Blur of the edges, as a share of the shorter side: 4 px of 224.
EDGE_BLUR = 0.02


def random_baseline(maps: Tensor, seeds: Sequence[int]) -> Tensor:
    """Shift the map cyclically by a random distance.

    The shifted map has exactly the map's values, covers the same area at every threshold, and has
    blobs of the same size and smoothness, except at the seam. This matters because deletion and
    insertion depend on how scattered the pixels are nearly as much as on their positions.

    Args:
        maps: float [B,H,W].
        seeds: one per map; a seed gives the same shift on every device, in every batch.

    Returns:
        float [B,H,W].
    """
    shifted = []
    for one, seed in zip(maps, seeds, strict=True):
        generator = torch.Generator().manual_seed(seed)
        shift = [int(torch.randint(side, (), generator=generator)) for side in one.shape]
        shifted.append(one.roll(shift, (0, 1)))
    return torch.stack(shifted)


def edge_baseline(images: Tensor) -> Tensor:
    """Edges of the image: Sobel magnitude, blurred by 2 % of the shorter side, min-max normalised.

    A map that does not beat it may show only the image, not the model.

    Args:
        images: float [B,C,H,W].

    Returns:
        float [B,H,W] in [0, 1].

    Source: an edge detector as a baseline map: Adebayo et al. 2018, arXiv 1810.03292.
    """
    gray = pad(images.float().mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    sobel = gray.new_tensor([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    gradient = conv2d(gray, torch.stack([sobel, sobel.T])[:, None])
    magnitude = gradient.square().sum(1, keepdim=True).sqrt()
    return min_max(gaussian_blur(magnitude, EDGE_BLUR * min(images.shape[2:])))[0][:, 0]
