"""Five crops of a photo, explained together: its corners and its centre, as GeoEstimation does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from combicam.engine.explain.explainer import Explainer
from combicam.engine.explain.explanation import Explanation
from combicam.engine.images.resize import resize, scaled_size

COMBINES = ("max", "mean")


@dataclass(frozen=True)
class FiveCrops:
    """What five crops of one photo say together. All tensors are on the explainer's device.

    Attributes:
        heatmaps: float32 [K,h,w] on the photo's own pixels, in [0, 1]; 0 where no crop is.
        targets: int64 [K], the explained classes, best first.
        scores: float32 [K], their combined probabilities.
        probabilities: float32 [n], of all classes, combined; with ``max`` they do not sum to 1.
        covered: bool [h,w], pixels that a crop shows: all but strips at the middle of the long
            sides of photos more than 7 : 4 long.
        flat: bool [K], the map is constant: its heatmap is all zeros.
        crops: every crop by itself, in the order top left, top right, bottom left, bottom right,
            centre.
    """

    heatmaps: Tensor
    targets: Tensor
    scores: Tensor
    probabilities: Tensor
    covered: Tensor
    flat: Tensor
    crops: Explanation


def explain_five_crops(
    explainer: Explainer,
    photo: NDArray[np.uint8],
    targets: Sequence[int] | None = None,
    combine: str = "max",
) -> FiveCrops:
    """Explain five crops of a photo, and lay their maps over it.

    The map of every crop before normalisation is put back where the crop was; where crops overlap
    the mean is taken. So the heatmap is that of the mean of the crops' scores; min and max are
    those of the photo, not of a crop.

    Args:
        explainer: of a network whose photos are cropped (``resize="crop"``), such as
            ``geoestimation``; the photo is scaled as for it.
        photo: uint8 [h,w,3], RGB, upright.
        targets: classes to explain; None for the K best by combined probability, K as in the spec.
        combine: over the crops, ``max`` of each class's probability (as GeoEstimation does; of its
            hierarchy it multiplies the levels after that, here before), or their ``mean``.

    Raises:
        ValueError: no photo, an explainer that does not crop, a spec without one map per target,
            or classes that do not exist.

    Source: Müller-Budack et al., ECCV 2018, section 4; its PyTorch implementation.
    """
    _check(explainer, photo, combine)
    crops, places, scaled = _crops(explainer, photo)
    images = torch.from_numpy(crops)
    if targets is None:
        chosen = _combined(explainer(images).logits, combine)
        ids = chosen.topk(min(explainer.spec.targets, len(chosen))).indices
    else:
        ids = torch.as_tensor(list(targets), dtype=torch.int64, device=explainer.device)
        if not len(ids) or int(ids.min()) < 0:
            raise ValueError(
                f"explain_five_crops: expected classes of at least 0, got {list(targets)}; leave "
                "targets out for the best ones"
            )
    found = explainer(images, targets=ids.expand(len(images), -1))
    probabilities = _combined(found.logits, combine)
    sums, counts = _merged(_raw(explainer, found), places, scaled)
    heatmaps, covered, flat = _on_photo(sums, counts, (photo.shape[0], photo.shape[1]))
    return FiveCrops(heatmaps, ids, probabilities[ids], probabilities, covered, flat, found)


def _check(explainer: Explainer, photo: NDArray[np.uint8], combine: str) -> None:
    if combine not in COMBINES:
        raise ValueError(f"explain_five_crops: expected combine in {COMBINES}, got {combine!r}")
    if photo.dtype != np.uint8 or photo.ndim != 3 or photo.shape[2] != 3 or not photo.size:
        raise ValueError(
            f"explain_five_crops: expected a photo as uint8 [h,w,3], got {photo.dtype} "
            f"{photo.shape}"
        )
    if explainer.preprocess.resize != "crop":
        raise ValueError(
            f"explain_five_crops: expected an explainer with resize='crop', got "
            f"{explainer.preprocess.resize!r}, which sees the whole photo anyway"
        )
    if explainer.spec.fuse == "none":
        raise ValueError(
            "explain_five_crops: expected a spec that fuses its layers, got fuse='none'"
        )


def _crops(
    explainer: Explainer, photo: NDArray[np.uint8]
) -> tuple[NDArray[np.uint8], list[tuple[int, int]], tuple[int, int]]:
    """The crops [5,H,W,3], their top left corners (row, column), and the scaled photo's (H, W)."""
    preprocess = explainer.preprocess
    size = (photo.shape[1], photo.shape[0])
    width, height = scaled_size(size, preprocess)
    whole = replace(preprocess, input_size=(height, width), resize="squash")
    pixels = resize(np.array(photo), 1, size, whole)
    rows, columns = height - explainer.input_size[0], width - explainer.input_size[1]
    places = [
        (0, 0), (0, columns), (rows, 0), (rows, columns), (round(rows / 2), round(columns / 2))
    ]  # fmt: skip
    h, w = explainer.input_size
    return np.stack([pixels[y : y + h, x : x + w] for y, x in places]), places, (height, width)


def _combined(logits: Tensor, combine: str) -> Tensor:
    probabilities = logits.float().softmax(-1)
    return probabilities.amax(0) if combine == "max" else probabilities.mean(0)


def _raw(explainer: Explainer, found: Explanation) -> Tensor:
    """The fused maps before they were normalised, [5,K,H,W]."""
    if not explainer.spec.normalize.endswith("map"):
        return found.heatmaps
    low, high = found.ranges[..., 0, None, None], found.ranges[..., 1, None, None]
    return low + found.heatmaps * (high - low)


def _merged(
    maps: Tensor, places: Sequence[tuple[int, int]], size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Sums of the crops' maps [K,H,W] on the scaled photo, and how many show a pixel [H,W]."""
    sums = maps.new_zeros((maps.shape[1], *size))
    counts = maps.new_zeros(size)
    h, w = maps.shape[2:]
    for crop, (y, x) in zip(maps, places, strict=True):
        sums[:, y : y + h, x : x + w] += crop
        counts[y : y + h, x : x + w] += 1
    return sums, counts


def _on_photo(sums: Tensor, counts: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Heatmaps [K,h,w], which pixels have one [h,w], and which maps are flat [K]."""
    mean = sums / counts.clamp(min=1)
    grown = F.interpolate(mean[None], size, mode="bilinear", antialias=True)[0]
    covered = F.interpolate(counts[None, None], size, mode="nearest-exact")[0, 0] > 0
    inside = grown[:, covered]
    low, high = inside.amin(1)[:, None, None], inside.amax(1)[:, None, None]
    flat = high <= low
    heatmaps = torch.where(flat | ~covered, 0.0, (grown - low) / (high - low).clamp(min=1e-38))
    return heatmaps, covered, flat[:, 0, 0]
