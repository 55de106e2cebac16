"""Check the targets of a call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from combicam.errors import ArtifactError
from combicam.export.trace.scores import best_classes, last_rank


@dataclass(frozen=True)
class Contrast:
    """Targets for why class a and not class b; made by :func:`contrast`.

    Attributes:
        a, b: int64, a single class, [B] or [B,K].
    """

    a: Tensor
    b: Tensor

    def weights(self, batch: int, classes: int) -> Tensor:
        """Region weights that are 1 for a, -1 for b and 0 for all others: float32 [B,K,n].

        Raises:
            ValueError: a batch size that differs, a class that does not exist, or a = b.
        """
        a, b = (_per_image(name, ids, batch, classes) for name, ids in self.__dict__.items())
        if 1 not in (a.shape[1], b.shape[1]) and a.shape != b.shape:
            raise ValueError(
                f"contrast: expected as many classes in a as in b, got K={a.shape[1]} and "
                f"K={b.shape[1]}; name one pair per target"
            )
        a, b = torch.broadcast_tensors(a, b)
        if bool((a == b).any()):
            raise ValueError(
                f"contrast: expected two different classes, got {int(a[a == b][0])} twice; the "
                "difference of a score from itself has no map"
            )
        every = torch.arange(classes, device=a.device)
        return (a[..., None] == every).float() - (b[..., None] == every).float()


@dataclass(frozen=True)
class Finer:
    """Targets for why a class and not the ones that are most similar; made by :func:`finer`.

    Attributes:
        similar: number of similar classes.
        alpha, weights: see :func:`finer`; None for the explainer's.
        classes: the explained ones, in any form of targets; None for the best.
    """

    similar: int
    alpha: float | None = None
    weights: str | None = None
    classes: Any = None

    def changes(self) -> tuple[tuple[str, Any], ...]:
        """Fields of the spec that differ from the explainer's."""
        named = {"finer_alpha": self.alpha, "finer_weights": self.weights}
        return (("finer", self.similar), *((k, v) for k, v in named.items() if v is not None))


def finer(
    similar: int = 3,
    alpha: float | None = None,
    weights: str | None = None,
    *,
    classes: Any = None,
) -> Finer:
    """Targets that explain why the model predicts a class and not those that it confuses it with.

    Finer-CAM: y = s_c - alpha * sum of w_i s_i over the classes whose logits are closest to that of
    c, found in the graph itself, so for the cost of a usual explanation. ``scores`` of the
    explanation are p_c. An artifact must have been exported with these values of ``CamSpec.finer``,
    ``finer_alpha`` and ``finer_weights``.

    Args:
        similar: number of similar classes, at least 1.
        alpha: how much of their score is subtracted; None: the explainer's ``finer_alpha``.
        weights: ``softmax`` of their logits, or ``mean``; None: the explainer's ``finer_weights``.
        classes: the explained classes, int, [B] or [B,K], also ranks; None: the K best.

    Returns:
        Targets for ``explainer(images, targets=...)``.

    Raises:
        ValueError: no similar class.
        TypeError: weights of classes, which have no similar ones.

    Source: Zhang et al., CVPR 2025, arXiv 2501.11309.
    """
    if isinstance(similar, bool) or not isinstance(similar, int) or similar < 1:
        raise ValueError(f"finer: expected similar as an int >= 1, got {similar!r}")
    if isinstance(classes, (Contrast, Finer)) or (
        classes is not None and torch.as_tensor(classes).is_floating_point()
    ):
        raise TypeError(
            "finer: expected classes as int, which have similar ones, got weights; name classes"
        )
    return Finer(similar, alpha, weights, classes)


def contrast(a: Any, b: Any) -> Contrast:
    """Targets that explain why the model predicts a and not b.

    y = s_a - s_b is differentiated, where s is the spec's score; for ``logit`` and ``logprob``
    this is the difference of two logits, and all other classes cancel. Swapping a and b flips the
    sign of every gradient. An artifact needs ``target_input="weights"`` for contrasts.

    Args:
        a, b: one class for all images, or int64 [B] or [B,K]; one of them may be broadcast.

    Returns:
        Targets for ``explainer(images, targets=...)``.

    Raises:
        TypeError: classes that are not integers.
    """
    ids = [torch.as_tensor(x) for x in (a, b)]
    for name, x in zip("ab", ids, strict=True):
        if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
            raise TypeError(f"contrast: expected {name} as int, got {x.dtype}")
    return Contrast(ids[0].long(), ids[1].long().to(ids[0].device))


def _per_image(name: str, ids: Tensor, batch: int, classes: int) -> Tensor:
    """One class, [B] or [B,K] as [B,K]."""
    given = tuple(ids.shape)
    if ids.ndim < 2:
        ids = ids.expand(batch)[:, None] if ids.ndim == 0 else ids[:, None]
    if ids.ndim != 2 or len(ids) != batch or not ids.shape[1]:
        raise ValueError(
            f"contrast: expected {name} as one class, [B] or [B,K] with B={batch} images, got "
            f"shape {given}"
        )
    if int(ids.min()) < 0 or int(ids.max()) >= classes:
        wrong = int(ids.min()) if int(ids.min()) < 0 else int(ids.max())
        raise ValueError(
            f"contrast: expected {name} in 0..{classes - 1}, got {wrong}; the best classes are "
            "the .targets of a call without targets"
        )
    return ids


class Targets(NamedTuple):
    """Checked targets.

    Attributes:
        values: int64 [B,K] or float32 [B,K,n].
        kind: ``classes`` or ``weights``.
    """

    values: Tensor
    kind: str


def read_targets(targets: Any, batch: int, classes: int) -> Targets:
    """Check classes, regions or contrasts.

    Args:
        targets: classes as int, [B] or [B,K], weights as float [n] or [B,K,n], a
            :class:`Contrast`; or :class:`Targets`, which are not checked again, since checking
            waits for a GPU.
        batch: B.
        classes: n.

    Returns:
        int64 [B,K] and ``classes``, or float32 [B,K,n] and ``weights``.

    Raises:
        TypeError: neither integers nor weights.
        ValueError: a batch size that differs, a class that does not exist, or weights that are all
            zero.
    """
    if targets is None:
        raise ValueError(
            "Explainer: expected targets as float [B,K,n], the region weights that this artifact "
            "was exported for, got None"
        )
    if isinstance(targets, Targets):
        return targets
    if isinstance(targets, Contrast):
        return Targets(targets.weights(batch, classes), "weights")
    given = torch.as_tensor(targets)
    if given.is_floating_point():
        return Targets(_weights(given, batch, classes), "weights")
    if given.dtype == torch.bool or given.is_complex():
        raise TypeError(f"Explainer: expected targets as int or float, got {given.dtype}")
    ids = given.long()
    ids = ids.expand(batch) if ids.ndim == 0 else ids
    ids = ids[:, None] if ids.ndim == 1 else ids
    if ids.ndim != 2 or len(ids) != batch or not ids.shape[1]:
        raise ValueError(
            f"Explainer: expected targets as one class, [B] or [B,K] with B={batch} images, got "
            f"{tuple(given.shape)}; name at least one class per image"
        )
    low, high, least = int(ids.min()), int(ids.max()), -last_rank(classes, ids.shape[1])
    if high >= classes or low < least:
        raise ValueError(
            f"Explainer: expected class >= {least} and < {classes} (-1: the best, -2: the second "
            f"best), got {high if high >= classes else low}"
        )
    return Targets(ids, "classes")


def check_columns(ids: Tensor) -> None:
    """Check ranks for a file of format 1, which has the k-th best class only in column k.

    Args:
        ids: int64 [B,K].

    Raises:
        ArtifactError: a rank that differs from its column's.
    """
    columns = best_classes(1, ids.shape[1], ids.device)
    wrong = (ids < 0) & (ids != columns)
    if bool(wrong.any()):
        column = int(wrong.nonzero()[0, 1])
        raise ArtifactError(
            f"Explainer: expected a class or {-1 - column} in column {column} of targets, got "
            f"{int(ids[wrong][0])}: the file is from an older combicam and ranks by column; export "
            "it again"
        )


def _weights(given: Tensor, batch: int, classes: int) -> Tensor:
    shape = tuple(given.shape)
    given = given.expand(batch, 1, -1) if given.ndim == 1 else given
    if given.ndim != 3 or given.shape[::2] != (batch, classes) or not given.shape[1]:
        raise ValueError(
            f"Explainer: expected region weights [n] or [B,K,n] with B={batch} and n={classes}, "
            f"got {shape}; pass classes as integers"
        )
    weights = given.float()
    total = weights.abs().sum(-1)
    for wrong, what in (
        (~total.isfinite(), "NaN, infinity or a sum beyond float32"),
        (total == 0, "all zeros"),
    ):
        if bool(wrong.any()):
            b, k = (int(i) for i in wrong.nonzero()[0])
            raise ValueError(
                "Explainer: expected finite region weights with at least one that is not 0 (a "
                "positive weight counts for, a negative one against), got "
                f"{what} for image {b}, target {k}"
            )
    return weights
