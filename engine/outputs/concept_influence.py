"""Measure concept influence: a concept's share of the highest pixels relative to its area."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

TOP_PIXELS = 1000
Box = tuple[float, float, float, float]
_WHOLE: Box = (0.0, 0.0, 1.0, 1.0)


def concept_influence(
    heatmaps: Any, masks: Any, k: int = TOP_PIXELS, concepts: Sequence[int] | None = None
) -> NDArray[np.float64]:
    """A concept's share of the highest heatmap pixels, relative to its share of the image.

    ``CI(c) = (share of the k largest pixels that lie on c) / (share of the image that is c)``: 1
    for a concept that is highlighted like the rest of the image, 0 for one that is not at all.
    Pixels that tie for the last of the k share the remaining weight equally, which is the mean
    over all ways to break the tie.

    Args:
        heatmaps: float or uint8 [N,H,W].
        masks: integers >= 0 [N,h,w], the concept of every pixel; resized to (H, W) by nearest
            neighbour if necessary.
        k: how many pixels.
        concepts: labels of the C columns; default: all that occur in the masks, ascending.

    Returns:
        float64 [N,C]; NaN where an image lacks the concept, or its heatmap is constant.

    Raises:
        ValueError: shapes that do not match, heatmaps that are not finite, labels that are not
            integers >= 0, or ``k`` outside 1..H*W.

    Source: Theiner, Müller-Budack, Ewerth, "Interpretable Semantic Photo Geolocation", WACV 2022,
    arXiv 2104.14995.
    """
    heatmaps, masks = np.asarray(heatmaps), np.asarray(masks)
    if heatmaps.ndim != 3 or masks.ndim != 3 or len(heatmaps) != len(masks):
        raise ValueError(
            f"concept_influence: expected heatmaps [N,H,W] and as many masks [N,h,w], got "
            f"{heatmaps.shape} and {masks.shape}"
        )
    if len(masks):
        check_labels(masks, "concept_influence")
    labels = np.unique(masks) if concepts is None else np.asarray(concepts, np.int64)
    if len(masks) == 0:
        return np.empty((0, len(labels)))
    rows = [
        shares(heatmap, resized_labels(mask, (heatmap.shape[0], heatmap.shape[1])), k, labels)
        for heatmap, mask in zip(heatmaps, masks, strict=True)
    ]
    return np.stack([influence for influence, _ in rows])


def shares(
    heatmap: NDArray[Any], labels: NDArray[Any], k: int, concepts: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The concepts' influence in one image, and their shares of the image.

    Args:
        heatmap: [H,W].
        labels: integers >= 0 [H,W].
        k: how many pixels.
        concepts: [C], integers >= 0.

    Raises:
        ValueError: see :func:`concept_influence`.
    """
    weights = top_weights(heatmap, k)
    size = int(max(labels.max(), concepts.max(initial=0))) + 1
    flat = labels.reshape(-1).astype(np.int64)
    area = np.bincount(flat, minlength=size)[concepts] / flat.size
    on_top = np.bincount(flat, weights.reshape(-1), minlength=size)[concepts] / k
    present = (area > 0) & (heatmap.min() < heatmap.max())
    return np.divide(on_top, area, out=np.full(len(concepts), np.nan), where=present), area


def top_weights(heatmap: NDArray[Any], k: int) -> NDArray[np.float64]:
    """Weights of the k largest pixels: 1 or 0, [H,W]; fractions for pixels that tie.

    Raises:
        ValueError: see :func:`concept_influence`.
    """
    if not np.isfinite(heatmap).all():
        raise ValueError("concept_influence: expected finite heatmaps, got NaN or infinity")
    if not 1 <= k <= heatmap.size:
        raise ValueError(
            f"concept_influence: expected k in 1..{heatmap.size}, the pixels of a heatmap of "
            f"{heatmap.shape[0]}x{heatmap.shape[1]}, got {k}; choose a smaller one"
        )
    last = np.partition(heatmap.reshape(-1), heatmap.size - k)[heatmap.size - k]
    above, ties = heatmap > last, heatmap == last
    part = (k - above.sum()) / ties.sum()
    return np.asarray(above + part * ties, np.float64)


def resized_labels(labels: NDArray[Any], size: tuple[int, int], box: Box = _WHOLE) -> NDArray[Any]:
    """Resize a part of a label map by nearest neighbour.

    Args:
        labels: [h,w].
        size: (H, W).
        box: left, top, right, bottom of the part, as shares of the width and the height.
    """
    left, top, right, bottom = box
    spans = ((top, bottom), (left, right))
    rows, columns = (
        # Sample at pixel centres.
        np.minimum(
            ((start + (np.arange(n) + 0.5) / n * (end - start)) * old).astype(np.int64), old - 1
        )
        for (start, end), n, old in zip(spans, size, labels.shape, strict=True)
    )
    return labels[rows[:, None], columns]


def check_labels(labels: NDArray[Any], where: str) -> None:
    """Check that labels are integers >= 0.

    Raises:
        ValueError: they are not.
    """
    if labels.dtype.kind not in "iu" or labels.size == 0 or labels.min() < 0:
        low = labels.min() if labels.size else "nothing"
        raise ValueError(
            f"{where}: expected labels as integers >= 0, got {labels.dtype} from {low}; number "
            "the concepts"
        )
