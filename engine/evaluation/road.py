"""ROAD: remove pixels by noisy linear imputation, the most or the least relevant first.

A removed pixel becomes the weighted mean of its eight neighbours, 1/6 of each at a side and 1/12 of
each at a corner; removed neighbours are unknowns of the same linear system. Unlike a constant or a
blurred region, the result does not show the model where pixels were removed.

Source: Rong, Leemann et al., ICML 2022, arXiv 2202.00449.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import conv2d, interpolate

from combicam.engine.evaluation.deletion_insertion import Network, Quantity, pixel_ranks

SHARES = (0.2, 0.4, 0.6, 0.8)
_NOISE = 0.01  # standard deviation, of normalised images
_CLOSE = 1e-4  # largest residual of the linear system; values are off by less than the noise
_MOST_ITERATIONS = 2000
_WEIGHTS = ((1 / 12, 1 / 6, 1 / 12), (1 / 6, 0.0, 1 / 6), (1 / 12, 1 / 6, 1 / 12))


def impute(images: Tensor, kept: Tensor, close: float = _CLOSE) -> Tensor:
    """Replace pixels by the means of their neighbours, without noise.

    Args:
        images: float [N,C,H,W].
        kept: bool [N,H,W]; False where a pixel is removed; some pixel of every image is kept.
        close: largest residual of the linear system, in units of the images.

    Returns:
        float [N,C,H,W], by conjugate gradients.
    """
    gone = ~kept[:, None].expand_as(images)
    weight = images.new_tensor(_WEIGHTS).expand(images.shape[1], 1, 3, 3)

    def around(x: Tensor) -> Tensor:
        return conv2d(x, weight, padding=1, groups=images.shape[1])

    total = around(torch.ones_like(images[:1]))  # less than 1 at the border

    def system(x: Tensor) -> Tensor:
        return (total * x - around(x)).masked_fill_(~gone, 0)

    x = _coarse_guess(images, kept).masked_fill(~gone, 0)
    residual = around(images.masked_fill(gone, 0)).masked_fill(~gone, 0) - system(x)
    step, square = residual / total, (residual.square() / total).sum((2, 3), keepdim=True)
    for _ in range(_MOST_ITERATIONS):
        if not (residual.abs() > close).any():
            break
        image = system(step)
        tiny = torch.finfo(x.dtype).tiny
        length = square / (step * image).sum((2, 3), keepdim=True).clamp_min(tiny)
        x, residual = x + length * step, residual - length * image
        before, square = square, (residual.square() / total).sum((2, 3), keepdim=True)
        step = residual / total + square / before.clamp_min(tiny) * step
    return torch.where(gone, x, images)


def _coarse_guess(images: Tensor, kept: Tensor) -> Tensor:
    """Fill removed pixels from means of the kept ones on ever coarser grids."""
    known = kept[:, None].to(images.dtype)
    if min(images.shape[2:]) < 2 or bool((known > 0).all()):
        return images
    sums = interpolate(images * known, scale_factor=0.5, mode="area")
    shares = interpolate(known, scale_factor=0.5, mode="area")
    means = sums / shares.clamp_min(torch.finfo(images.dtype).tiny)
    coarse = _coarse_guess(means, (shares > 0)[:, 0])
    filled = interpolate(coarse, size=images.shape[2:], mode="bilinear", align_corners=False)
    return torch.where(known > 0, images, filled)


def road(
    network: Network,
    images: Tensor,
    maps: Tensor,
    quantity: Quantity,
    seeds: Sequence[int],
    shares: Sequence[float] = SHARES,
    batch_size: int = 64,
) -> tuple[Tensor, Tensor]:
    """A quantity without the most, and without the least relevant pixels.

    Args:
        network: normalised images to logits.
        images: float [B,C,H,W], normalised.
        maps: float [B,H,W]; equal values are removed in reading order.
        quantity: computed from the logits.
        seeds: one per image, of the noise, which all maps of an image share.
        shares: of the pixels that are removed.
        batch_size: of the 2 len(shares) forward passes of an image.

    Returns:
        float32 [B] MoRF, mean over the shares with the most relevant pixels removed first: lower is
        better; and LeRF, the least relevant first: higher is better.
    """
    count, pixels = len(images), images.shape[2] * images.shape[3]
    ranks = pixel_ranks(maps)
    noise = torch.stack([_noise(images[0], seed) for seed in seeds])
    values = images.new_empty((count, 2, len(shares)), dtype=torch.float32)
    jobs = torch.cartesian_prod(
        torch.arange(count), torch.arange(2), torch.arange(len(shares))
    ).reshape(-1, 3)
    removed = (torch.tensor(shares, dtype=torch.float64) * pixels).round().long()
    for job in jobs.split(batch_size):
        owners, order, share = job.to(images.device).unbind(1)
        number = removed.to(images.device)[share][:, None]
        most, least = ranks[owners] >= number, ranks[owners] < pixels - number
        kept = torch.where((order == 0)[:, None], most, least).unflatten(1, images.shape[2:])
        shown = impute(images[owners], kept)
        shown = torch.where(kept[:, None], shown, shown + noise[owners])
        values[owners, order, share] = quantity(network(shown), owners).float()
    morf, lerf = values.mean(2).unbind(1)
    return morf, lerf


def _noise(image: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (_NOISE * torch.randn(image.shape, generator=generator)).to(image)
