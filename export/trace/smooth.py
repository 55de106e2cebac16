"""Smooth heatmaps over augmented views of an image, inside the graph."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Per choice, the views of an image: whether it is mirrored, and what its values are multiplied by.
# The first is the image itself.
VIEWS = {
    "none": ((False, 1.0),),
    "flips": ((False, 1.0), (True, 1.0)),
    "flips+intensities": tuple((flip, by) for flip in (False, True) for by in (1.0, 0.9, 1.1)),
}


def views_of(images: Tensor, smooth: str) -> Tensor:
    """The views of all images, [V B,3,H,W], view by view."""
    if smooth == "none":
        return images
    mirrored = images.flip(-1)
    each = [(mirrored if flip else images) * by for flip, by in VIEWS[smooth]]
    return torch.cat(each)


def of_images(x: Tensor, smooth: str) -> Tensor:
    """The rows of the images themselves, [V B,...] -> [B,...]."""
    return x if smooth == "none" else x.unflatten(0, (len(VIEWS[smooth]), -1))[0]


def for_views(x: Tensor, smooth: str) -> Tensor:
    """The same rows for every view, [B,...] -> [V B,...]."""
    return x if smooth == "none" else x.repeat(len(VIEWS[smooth]), *[1] * (x.ndim - 1))


def merged(outputs: Sequence[Tensor], smooth: str) -> list[Tensor]:
    """The mean over views, mirrored back.

    Heatmaps and maps [V B,...,w] are each normalised before; ranges are the means of the views'.

    Args:
        outputs: ``[heatmaps, ranges, *layer maps]``, as of the CAM head.
        smooth: one of ``VIEWS``.
    """
    if smooth == "none":
        return list(outputs)
    means = []
    for i, x in enumerate(outputs):
        each = x.unflatten(0, (len(VIEWS[smooth]), -1)).unbind(0)
        pairs = zip(each, VIEWS[smooth], strict=True)
        back = [view.flip(-1) if flip and i != 1 else view for view, (flip, _) in pairs]
        means.append(sum(back[1:], back[0]) / len(back))
    return means
