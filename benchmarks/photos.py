"""Photographs for measuring: two halves, and mosaics of those that a network is sure of."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from combicam.demo.photo_models import lite0, lite1, lite2
from combicam.engine.evaluation.grid_pointing import Candidate, draw_mosaics
from combicam.engine.explain.score_network import Network
from combicam.engine.images.decode import decode_image
from combicam.engine.inputs.listing import list_inputs
from combicam.export.models.models import LoadedModel

NETWORKS: dict[str, Callable[[], LoadedModel]] = {"lite0": lite0, "lite1": lite1, "lite2": lite2}
HALVES = ("tune", "report")


@dataclass(frozen=True)
class Photo:
    """A decoded photograph.

    Attributes:
        id: of the listing.
        pixels: uint8 [H,W,3].
        x: float [3,H,W], normalised.
    """

    id: str
    pixels: NDArray[np.uint8]
    x: Tensor


def half_of(folder: Path, half: str) -> list[Path]:
    """The files of one half, in an order that depends on their names only.

    Args:
        folder: of images.
        half: ``tune`` or ``report``.
    """
    names = {zlib.crc32(entry.id.encode()): entry.id for entry in list_inputs(str(folder))}
    return [folder / names[key] for key in sorted(names) if key % 2 == HALVES.index(half)]


def photos(folder: Path, model: LoadedModel, half: str) -> list[Photo]:
    """The photographs of one half as the model's inputs.

    Args:
        folder, half: as for :func:`half_of`.
        model: whose preprocessing decodes them.
    """
    found = []
    for path in half_of(folder, half):
        pixels = decode_image(path.read_bytes(), model.preprocess).pixels
        x = model.preprocess.normalize(torch.from_numpy(pixels)[None])[0].float()
        found.append(Photo(path.name, pixels, x))
    return found


def photo_mosaics(
    half: list[Photo], network: Network, most: int, confidence: float = 0.9
) -> Iterator[tuple[Tensor, Tensor]]:
    """Mosaics of 2 x 2 photographs of different classes, one by one.

    Yields:
        float [1,3,2H,2W], normalised, and the classes int64 [1,4].
    """
    candidates = []
    for photo in half:
        best, target = network(photo.x[None]).softmax(1)[0].max(0)
        if best >= confidence:
            candidates.append(Candidate(photo.id, int(target), float(best), photo.pixels))
    by_id = {photo.id: photo for photo in half}
    for mosaic in draw_mosaics(candidates, 2, most):
        rows = [torch.cat([by_id[c.id].x for c in mosaic[i : i + 2]], 2) for i in (0, 2)]
        yield torch.cat(rows, 1)[None], torch.tensor([[c.target for c in mosaic]])
