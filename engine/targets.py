"""What a caller may name as targets."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def read_targets(targets: Any, batch: int, classes: int) -> tuple[Tensor, str]:
    """Classes or regions, checked.

    Args:
        targets: classes as int [B] or [B,K], or regions as float [B,K,n].
        batch: B.
        classes: n.

    Returns:
        int64 [B,K] and ``classes``, or float32 [B,K,n] and ``weights``.

    Raises:
        TypeError: neither whole numbers nor weights.
        ValueError: a count that is not the batch's, a class that does not exist, a region without
            weight.
    """
    if targets is None:
        raise ValueError(
            "Explainer: expected targets as float [B,K,n], the region weights that this artifact "
            "was exported for, got None"
        )
    given = torch.as_tensor(targets)
    if given.is_floating_point():
        return _regions(given, batch, classes), "weights"
    if given.dtype == torch.bool or given.is_complex():
        raise TypeError(f"Explainer: expected targets as int or float, got {given.dtype}")
    ids = given.long()
    ids = ids[:, None] if ids.ndim == 1 else ids
    if ids.ndim != 2 or len(ids) != batch or not ids.shape[1]:
        raise ValueError(
            f"Explainer: expected targets [B] or [B,K] with B={batch} images, got "
            f"{tuple(given.shape)}; name at least one class per image"
        )
    if int(ids.max()) >= classes:
        raise ValueError(
            f"Explainer: expected targets in 0..{classes - 1} (negative: the k-th best), got "
            f"{int(ids.max())}"
        )
    return ids, "classes"


def _regions(weights: Tensor, batch: int, classes: int) -> Tensor:
    shape = tuple(weights.shape)
    if weights.ndim != 3 or shape[0] != batch or shape[2] != classes or not shape[1]:
        raise ValueError(
            f"Explainer: expected region weights [B,K,n] with B={batch} and n={classes}, got "
            f"{shape}; classes are named by whole numbers"
        )
    total = weights.sum(-1)
    if (
        not bool((weights >= 0).all())
        or not bool((total > 0).all())
        or not bool(total.isfinite().all())
    ):
        raise ValueError(
            "Explainer: expected region weights >= 0 with a positive, finite sum, got others"
        )
    return weights.float()
