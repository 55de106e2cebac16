"""Sensitivity-n: does a map's sum over random regions predict what removing them changes?

Source: Ancona et al., ICLR 2018, arXiv 1711.06104, section 3.3; with square cells for pixels, since
single removed pixels hardly change what a CNN says.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from combicam.engine.evaluation.deletion_insertion import Network, Quantity

CELLS = 7  # on a side
_REMOVED = 12  # n, of the 49 cells


def random_regions(seeds: Sequence[int], regions: int) -> Tensor:
    """Bool [B,R,7,7], 12 cells each; a seed gives the same regions in every batch."""
    drawn = [
        torch.rand(regions, CELLS**2, generator=torch.Generator().manual_seed(seed))
        for seed in seeds
    ]
    return (torch.stack(drawn).argsort(-1) < _REMOVED).unflatten(-1, (CELLS, CELLS))


def region_drops(
    network: Network,
    images: Tensor,
    blank: Tensor,
    regions: Tensor,
    quantity: Quantity,
    whole: Tensor,
    batch_size: int = 64,
) -> Tensor:
    """By how much the quantity falls when a region is removed; all maps of an image share it.

    Args:
        network: normalised images to logits.
        images, blank: float [B,C,H,W], normalised; the images, and what replaces them.
        regions: of :func:`random_regions`.
        quantity: computed from the logits.
        whole: logits of the images, [B,n].
        batch_size: of the R forward passes of an image.

    Returns:
        float32 [B,R].
    """
    count, number = regions.shape[:2]
    everyone = torch.arange(count, device=images.device)
    before = quantity(whole, everyone).float()
    values = images.new_empty((count, number), dtype=torch.float32)
    jobs = torch.cartesian_prod(torch.arange(count), torch.arange(number))
    for job in jobs.split(batch_size):
        owners, which = job.unbind(1)
        cells = regions[owners, which][:, None].float().to(images.device)
        gone = _at_size(cells, images.shape[2:]) > 0
        owners, which = owners.to(images.device), which.to(images.device)
        logits = network(torch.where(gone, blank[owners], images[owners]))
        values[owners, which] = quantity(logits, owners).float()
    return before[:, None] - values


def _at_size(cells: Tensor, size: Sequence[int]) -> Tensor:
    return interpolate(cells, size=tuple(size), mode="nearest")


def sensitivity(maps: Tensor, regions: Tensor, drops: Tensor) -> Tensor:
    """Pearson correlation of a map's sums over regions with the drops: float32 [B], in [-1, 1].

    Args:
        maps: float [B,H,W].
        regions: of :func:`random_regions`.
        drops: of :func:`region_drops`.

    Returns:
        NaN where the map or the drops are constant.
    """
    numbers = torch.arange(CELLS**2, device=maps.device, dtype=maps.dtype)
    cell = _at_size(numbers.view(1, 1, CELLS, CELLS), maps.shape[1:]).long().flatten()
    cells = maps.new_zeros((len(maps), CELLS**2), dtype=torch.float64)
    cells.index_add_(1, cell, maps.flatten(1).double())
    sums = torch.einsum("brc,bc->br", regions.to(maps.device).flatten(2).double(), cells)
    pairs = torch.stack([sums, drops.double()], 1)
    pairs = pairs - pairs.mean(2, keepdim=True)
    lengths = pairs.norm(dim=2)
    correlation = pairs.prod(1).sum(1) / lengths.prod(1)
    known = lengths > 1e-12 * pairs.abs().amax(2).clamp_min(1)
    return correlation.masked_fill(~known.all(1), torch.nan).float()
