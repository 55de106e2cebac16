"""Measure how the score changes when only the highlighted part of an image is shown.

An image x masked by a map E is E x + (1 - E) blank; with the mean colour as ``blank`` this is the
papers' product of map and normalised image.
"""

from __future__ import annotations

from torch import Tensor


def shown_alone(images: Tensor, blank: Tensor, maps: Tensor) -> Tensor:
    """E x + (1 - E) blank.

    Args:
        images, blank: float [B,C,H,W], normalised.
        maps: float [B,H,W] in [0, 1].
    """
    return blank + maps[:, None] * (images - blank)


def average_drop(before: Tensor, after: Tensor) -> Tensor:
    """max(0, p - q) / p of each image, in [0, 1]; 0 is best.

    Args:
        before: p, the score of the images, [B].
        after: q, the score of the result of :func:`shown_alone`, [B].

    Source: Grad-CAM++, arXiv 1710.11063, section 4.1.
    """
    return (before - after).clamp_min(0) / before.clamp_min(1e-12)


def confidence_increase(before: Tensor, after: Tensor) -> Tensor:
    """1 if the masked image scores higher than the whole image, else 0; [B].

    Args:
        before, after: p and q, see :func:`average_drop`.

    Source: Grad-CAM++, arXiv 1710.11063, section 4.1.
    """
    return (after > before).float()
