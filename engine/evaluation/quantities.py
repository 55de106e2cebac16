"""Compute from logits what perturbed images are measured by: probability, density, distance."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from combicam.engine.evaluation.deletion_insertion import Quantity
from combicam.engine.geo.distance import distance_km
from combicam.export.classes.classes import ClassTable

DENSITY_KM = 25.0


def probabilities(logits: Tensor, of_labels: bool = False) -> Tensor:
    """Of classes that exclude each other, or of labels, of which one logit is one: [N,n].

    Args:
        logits: [N,n].
        of_labels: each has a sigmoid of its own.
    """
    alone = of_labels or logits.shape[-1] == 1
    return logits.float().sigmoid() if alone else logits.float().softmax(-1)


def probability(targets: Tensor, of_labels: bool = False) -> Quantity:
    """Probability of each image's class.

    Args:
        targets: int64 [B].
        of_labels: see :func:`probabilities`.
    """

    def read(logits: Tensor, owners: Tensor) -> Tensor:
        return probabilities(logits, of_labels).gather(1, targets[owners, None])[:, 0]

    return read


def place_quantities(
    targets: Tensor, classes: ClassTable, radius_km: float = DENSITY_KM
) -> dict[str, Quantity]:
    """Two quantities for classes with locations, which take neighbouring classes into account.

    ``density``: summed probability of the classes within ``radius_km`` of the image's class (with
    small cells, a class's own probability already drops when it moves to a neighbouring cell).
    ``shift_km``: great-circle distance from the image's class to the class that is best now.

    Args:
        targets: int64 [B], the explained classes of the whole images.
        classes: with locations.
        radius_km: of ``density``.
    """
    lat, lon = np.asarray(classes.latitudes), np.asarray(classes.longitudes)
    chosen = targets.cpu().numpy()
    apart = distance_km(lat[chosen, None], lon[chosen, None], lat, lon)  # [B,n]
    distances = torch.from_numpy(apart).to(targets.device)
    near = (distances <= radius_km).float()

    def density(logits: Tensor, owners: Tensor) -> Tensor:
        return (logits.softmax(-1) * near[owners]).sum(-1)

    def shift(logits: Tensor, owners: Tensor) -> Tensor:
        return distances[owners, logits.argmax(-1)].float()

    return {"density": density, "shift_km": shift}
