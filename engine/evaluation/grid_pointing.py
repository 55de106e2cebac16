"""Play the grid pointing game: explain every class of a mosaic, and see whether maps stay in cells.

A mosaic is a square grid of images that the model classifies with confidence, of different classes.
Each class is explained on the whole mosaic; a map that knows where its class is stays in its cell.
No masks are needed.

Source: Böhle, Fritz, Schiele, CVPR 2021, arXiv 2104.00032, section 3.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from combicam.engine.evaluation.metrics import seeds_of

# What :func:`grid_pointing` returns -> whether higher is better.
GRID_METRICS = {"grid_energy": True, "grid_maximum": True}


@dataclass(frozen=True)
class Candidate:
    """An image that may stand in a mosaic.

    Attributes:
        id: of the image.
        target: its class, as the model says.
        confidence: probability of the class, of the image alone.
        pixels: uint8 [h,w,C], the model's input.
    """

    id: str
    target: int
    confidence: float
    pixels: NDArray[np.uint8]


def shuffled(candidates: Sequence[Candidate], seed: int) -> list[Candidate]:
    """In an order that depends on ids and seed only, not on which other images there are."""
    seeds = seeds_of([c.id for c in candidates], seed)
    return [candidates[i] for i in np.argsort(np.asarray(seeds, np.int64), kind="stable")]


def draw_mosaics(
    candidates: Sequence[Candidate], grid: int, most: int, seed: int = 0
) -> list[list[Candidate]]:
    """Mosaics of ``grid`` x ``grid`` images of one size and of different classes.

    Args:
        candidates: each is used once at most.
        grid: images on a side.
        most: mosaics.
        seed: of the order in which candidates are taken.
    """
    waiting = shuffled(candidates, seed)
    mosaics: list[list[Candidate]] = []
    while waiting and len(mosaics) < most:
        chosen: list[Candidate] = []
        for candidate in waiting:
            same = not chosen or candidate.pixels.shape == chosen[0].pixels.shape
            if same and candidate.target not in {c.target for c in chosen}:
                chosen.append(candidate)
            if len(chosen) == grid * grid:
                mosaics.append(chosen)
                break
        else:  # the first finds no company
            chosen = chosen[:1]
        used = {c.id for c in chosen}
        waiting = [c for c in waiting if c.id not in used]
    return mosaics


def assemble(mosaics: Sequence[Sequence[Candidate]], grid: int) -> Tensor:
    """uint8 [B, grid h, grid w, C], row by row."""
    cells = torch.from_numpy(np.stack([[c.pixels for c in mosaic] for mosaic in mosaics]))
    height, width = cells.shape[2:4]
    rows = cells.unflatten(1, (grid, grid)).permute(0, 1, 3, 2, 4, 5)
    return rows.reshape(len(mosaics), grid * height, grid * width, -1)


def grid_pointing(maps: Tensor, grid: int) -> tuple[Tensor, Tensor]:
    """How far each class's map stays in its own cell.

    Args:
        maps: float [B,K,H,W], not negative, K = ``grid``²; map k explains the class of cell k.
        grid: cells on a side; divides H and W.

    Returns:
        float32 [B,K] the share of the map's sum inside its cell, and whether its maximum lies
        there (1 or 0; of equal maxima the first counts). A constant map says nothing: NaN in both.
    """
    batch, count, height, width = maps.shape
    if count != grid * grid or height % grid or width % grid:
        raise ValueError(
            f"grid pointing: expected {grid * grid} maps of a size that {grid} divides, got "
            f"{tuple(maps.shape)}"
        )
    h, w = height // grid, width // grid
    cells = maps.double().view(batch, count, grid, h, grid, w).transpose(3, 4)
    cells = cells.reshape(batch, count, count, h * w)  # map, cell, pixel
    own = torch.arange(count, device=maps.device)
    energy = cells.sum(-1)[:, own, own] / cells.sum((-2, -1))
    peak = maps.flatten(2).argmax(-1)
    cell = torch.div(peak // width, h, rounding_mode="floor") * grid + (peak % width) // w
    hit = (cell == own).double()
    constant = maps.amax((-2, -1)) == maps.amin((-2, -1))
    return tuple(x.masked_fill(constant, torch.nan).float() for x in (energy, hit))  # type: ignore[return-value]
