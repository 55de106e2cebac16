"""Make maps that know nothing of the model: what any metric must be compared with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from combicam.engine.evaluation.blur import gaussian_blur
from combicam.kernels.extremes import min_max

# Of the edges, as a share of the shorter side: 4 px of 224.
EDGE_BLUR = 0.02


def random_control(maps: Tensor, seeds: Sequence[int]) -> Tensor:
    """The map itself, shifted by a random distance; what leaves at one side enters at the other.

    So the control has exactly the map's values, and covers as much at every threshold; and its
    blobs are as large and as smooth, but for a seam. That matters: which pixels are scattered and
    which lie together decides deletion and insertion nearly as much as where they lie.

    Args:
        maps: float [B,H,W].
        seeds: one for each; the same seed gives the same shift on every device, in every batch.

    Returns:
        float [B,H,W].
    """
    shifted = []
    for one, seed in zip(maps, seeds, strict=True):
        generator = torch.Generator().manual_seed(seed)
        shift = [int(torch.randint(side, (), generator=generator)) for side in one.shape]
        shifted.append(one.roll(shift, (0, 1)))
    return torch.stack(shifted)


def edge_control(images: Tensor) -> Tensor:
    """Where the picture has edges: Sobel magnitude, blurred by 2 % of the shorter side, min-max.

    A map that does not beat it may be a drawing of the photo, not of the network.

    Args:
        images: float [B,3,H,W].

    Returns:
        float [B,H,W] in [0, 1].

    Source: an edge detector as control: Adebayo et al. 2018, arXiv 1810.03292.
    """
    gray = pad(images.float().mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    sobel = gray.new_tensor([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    gradient = conv2d(gray, torch.stack([sobel, sobel.T])[:, None])
    magnitude = gradient.square().sum(1, keepdim=True).sqrt()
    return min_max(gaussian_blur(magnitude, EDGE_BLUR * min(images.shape[2:])))[0][:, 0]
