"""Explain five crops of an image jointly, its corners and its centre, like GeoEstimation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from combicam.engine.explain.explainer import Explainer
from combicam.engine.explain.explanation import Explanation
from combicam.engine.explain.targets import Targets, read_targets
from combicam.engine.images.channels import image_channels
from combicam.engine.images.resize import resize
from combicam.export.classes.classes import ClassTable
from combicam.export.preprocess import Preprocess
from combicam.export.spec import CamSpec
from combicam.export.trace.probe import LayerInfo
from combicam.export.trace.scores import best_classes, explained_classes
from combicam.kernels.extremes import is_flat

COMBINES = ("max", "mean")
CROPS = 5


@dataclass(frozen=True)
class FiveCrops:
    """Joint explanation of five crops of an image. All tensors are on the explainer's device.

    Attributes:
        heatmaps: float32 [K,h,w] in [0, 1], on the image's pixels; 0 outside the crops.
        targets: int64 [K], the explained classes, best first.
        scores: float32 [K], their combined probabilities.
        probabilities: float32 [n], combined, of all classes; with ``max`` they do not sum to 1.
        covered: bool [h,w], pixels inside a crop: all, except strips at the middle of the long
            sides of images longer than 7 : 4.
        flat: bool [K], whether the map is constant, so that its heatmap is all zeros.
        crops: the explanation of each crop, in the order top left, top right, bottom left, bottom
            right, centre.
    """

    heatmaps: Tensor
    targets: Tensor
    scores: Tensor
    probabilities: Tensor
    covered: Tensor
    flat: Tensor
    crops: Explanation


@dataclass(frozen=True)
class _MergedCrops:
    """Joint results of the crops of B images of the same size (h, w).

    Attributes:
        maps: float32 [B,K,h,w], mean of the crops' maps before normalisation; 0 outside crops.
        covered: bool [h,w], pixels inside a crop.
        targets: int64 [B,K].
        scores: float32 [B,K].
        log_probabilities: float32 [B,n], combined.
        crops: the explanation of all 5 B crops.
    """

    maps: Tensor
    covered: Tensor
    targets: Tensor
    scores: Tensor
    log_probabilities: Tensor
    crops: Explanation


class FiveCropExplainer:
    """Explains images by five crops each; a run with ``crops="five"`` uses it.

    An image is scaled as for the model's centre crop, but not cropped. The class probabilities of
    crops at its four corners and its centre are combined, and the best classes are explained in
    all five crops. Their maps before normalisation are placed where the crops are; where crops
    overlap, their mean is taken. So the heatmap explains the mean of the crops' scores, and is
    normalised by the minimum and maximum of the image, not of a crop. It is 0 outside the crops.

    If not all targets are given, an additional forward pass of the model chooses them.

    Args:
        explainer: of a model that crops its images (``resize="crop"``), such as
            ``geoestimation``.
        combine: over the crops, the ``max`` of each class's probability, or their ``mean``.
            GeoEstimation takes the max, too, but multiplies the levels of its hierarchy
            afterwards; here they are multiplied before.

    Raises:
        ValueError: an explainer that does not crop, or a spec without one map per target.

    Source: Müller-Budack et al., ECCV 2018, section 4; its PyTorch implementation.
    """

    def __init__(self, explainer: Explainer, combine: str = "max") -> None:
        if combine not in COMBINES:
            raise ValueError(f"five crops: expected combine in {COMBINES}, got {combine!r}")
        if explainer.preprocess.resize != "crop":
            raise ValueError(
                "five crops: expected a model that crops images (resize='crop'), got "
                f"{explainer.preprocess.resize!r}, which keeps whole images; explain without five "
                "crops, or choose resize='crop' (--resize crop)"
            )
        if explainer.spec.fuse == "none":
            raise ValueError(
                "five crops: expected a spec that fuses its layers, got fuse='none'; choose another"
            )
        self._explainer = explainer
        self._combine = combine
        self.preprocess: Preprocess = replace(explainer.preprocess, resize="cover")

    @property
    def spec(self) -> CamSpec:
        """The spec of each crop's maps."""
        return self._explainer.spec

    @property
    def classes(self) -> ClassTable | None:
        """Names and locations of the classes, if known."""
        return self._explainer.classes

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self._explainer.num_classes

    @property
    def layers(self) -> tuple[LayerInfo, ...]:
        """The target layers, with their grids of a crop."""
        return self._explainer.layers

    @property
    def keeps_layers(self) -> bool:
        """False: the crops' grids do not align on the image."""
        return False

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self._explainer.device

    @property
    def note(self) -> str:
        """A caveat about the model."""
        return self._explainer.note

    @property
    def explainer(self) -> Explainer:
        """Explains the crops."""
        return self._explainer

    def with_backend(self, backend: str) -> FiveCropExplainer:
        """The same in another backend; see :meth:`combicam.Explainer.with_backend`."""
        return FiveCropExplainer(self._explainer.with_backend(backend), self._combine)

    def layers_at(self, size: tuple[int, int]) -> tuple[LayerInfo, ...]:
        """The target layers, with grids as fine as a crop's, for images scaled to (H, W)."""
        down, across = (n / crop for n, crop in zip(size, self._explainer.input_size, strict=True))
        return tuple(
            replace(info, height=round(info.height * down), width=round(info.width * across))
            for info in self.layers
        )

    def fingerprint(self) -> dict[str, Any]:
        """Everything that determines the results."""
        here = {"preprocess": self.preprocess.to_dict(), "crops": CROPS, "combine": self._combine}
        return self._explainer.fingerprint() | here

    def __call__(self, photos: Tensor | NDArray[np.uint8], targets: Any = None) -> Explanation:
        """Explain images of the same size.

        Args:
            photos: uint8 [B,h,w,C], RGB or grey, scaled to ``preprocess.size_of`` them.
            targets: as of :class:`~combicam.Explainer`.

        Returns:
            heatmaps [B,K,h,w]; scores are combined probabilities (a region is summed in each crop
            before combining; a contrast is a difference of two regions); logits are logarithms of
            the combined probabilities, scaled to sum to 1; ranges are of the merged maps.

        Raises:
            TypeError, ValueError: invalid images or targets.
            ArtifactError: an artifact that was exported for other targets.
        """
        merged = self.merge(photos, targets)
        heatmaps, ranges = _normalised(merged.maps, merged.covered)
        logits = merged.log_probabilities
        return Explanation(
            heatmaps=heatmaps,
            targets=merged.targets,
            scores=merged.scores,
            logits=logits - logits.logsumexp(-1, keepdim=True),
            ranges=ranges,
            flat=is_flat(ranges),
        )

    def merge(self, photos: Tensor | NDArray[np.uint8], targets: Any = None) -> _MergedCrops:
        """Merged maps before normalisation, and the crops' results; arguments as for a call."""
        batch = self._photos(photos)
        size, (h, w) = (batch.shape[1], batch.shape[2]), self._explainer.input_size
        corners = crop_corners(size, (h, w))
        crops = torch.stack([batch[:, y : y + h, x : x + w] for y, x in corners], 1).flatten(0, 1)
        asked, log_probabilities = self._asked(crops, len(batch), targets)
        each = Targets(asked.values.repeat_interleave(CROPS, 0), asked.kind)
        found = self._explainer(crops, targets=each)
        if log_probabilities is None:
            log_probabilities = self._combined(found.logits)
        maps, covered = _laid(_by_photo(_raw(self.spec, found)), corners, size)
        return _MergedCrops(
            maps=maps,
            covered=covered,
            targets=_by_photo(found.targets)[:, 0],
            scores=self._scores(asked, found.logits, log_probabilities),
            log_probabilities=log_probabilities,
            crops=found,
        )

    def _photos(self, photos: Tensor | NDArray[np.uint8]) -> Tensor:
        batch = torch.as_tensor(photos)
        h, w = self._explainer.input_size
        channels = self.preprocess.channels
        kind = " (RGB)" if channels == 3 else ""
        fits = batch.dtype == torch.uint8 and batch.ndim == 4 and len(batch) > 0
        if not fits or batch.shape[3] != channels or batch.shape[1] < h or batch.shape[2] < w:
            raise ValueError(
                f"five crops: expected photos as uint8 [B,h,w,{channels}]{kind}, at least {h}x{w}, "
                f"got {batch.dtype} {tuple(batch.shape)}; scale them to preprocess.size_of(width, "
                "height)"
            )
        return batch.to(self.device, non_blocking=True)

    def _asked(self, crops: Tensor, batch: int, targets: Any) -> tuple[Targets, Tensor | None]:
        """The targets, and the log-probabilities by which classes were chosen, or None."""
        if targets is None:
            asked = Targets(best_classes(batch, self.spec.targets, self.device), "classes")
        else:
            asked = read_targets(targets, batch, self.num_classes)
            asked = Targets(asked.values.to(self.device), asked.kind)
            if asked.kind == "weights" or not bool((asked.values < 0).any()):
                return asked, None
        forward, normalize = self._explainer.score_network, self._explainer.preprocess.normalize
        log_probabilities = self._combined(forward(normalize(crops)))
        ids = explained_classes(log_probabilities, asked.values, asked.values.shape[1])
        return Targets(ids, "classes"), log_probabilities

    def _combined(self, logits: Tensor) -> Tensor:
        """Logits [B*5,n] of the crops -> log-probabilities [B,n], which do not underflow."""
        each = _by_photo(logits.float().log_softmax(-1))
        if self._combine == "max":
            return each.amax(1)
        return each.logsumexp(1) - math.log(CROPS)

    def _scores(self, asked: Targets, logits: Tensor, log_probabilities: Tensor) -> Tensor:
        """Scores [B,K]."""
        if asked.kind == "classes":
            return log_probabilities.gather(1, asked.values).exp()
        each = _by_photo(logits.float().softmax(-1)).mT  # [B,n,5]
        plus, minus = (torch.bmm((sign * asked.values).clamp_min(0), each) for sign in (1, -1))
        if self._combine == "max":
            return plus.amax(-1) - minus.amax(-1)
        return plus.mean(-1) - minus.mean(-1)


def explain_five_crops(
    explainer: Explainer,
    photo: NDArray[np.uint8],
    targets: Sequence[int] | None = None,
    combine: str = "max",
) -> FiveCrops:
    """Explain an image by five crops: see :class:`FiveCropExplainer`.

    Args:
        explainer: of a model that crops its images (``resize="crop"``), such as
            ``geoestimation``; the image is scaled accordingly.
        photo: uint8 [h,w,3], RGB, or [h,w,1], grey, upright.
        targets: classes to explain; None for the K best by combined probability, K as in the spec.
        combine: over the crops, the ``max`` of each class's probability, or their ``mean``.

    Raises:
        ValueError: not an image, an explainer that does not crop, a spec without one map per
            target, or classes that do not exist.
    """
    if photo.dtype != np.uint8 or photo.ndim != 3 or photo.shape[2] not in (1, 3) or not photo.size:
        raise ValueError(
            f"explain_five_crops: expected a photo as uint8 [h,w,3] or [h,w,1], got {photo.dtype} "
            f"{photo.shape}"
        )
    explainer.preprocess.check_photos("explain_five_crops")
    if targets is not None and (not len(targets) or min(targets) < 0):
        raise ValueError(
            f"explain_five_crops: expected classes of at least 0, got {list(targets)}; leave "
            "targets out for the best ones"
        )
    five = FiveCropExplainer(explainer, combine)
    height, width = photo.shape[:2]
    pixels = image_channels(np.array(photo), explainer.channels)
    scaled = resize(pixels, 1, (width, height), five.preprocess)
    merged = five.merge(scaled[None], None if targets is None else [list(targets)])
    grown = F.interpolate(merged.maps, (height, width), mode="bilinear", antialias=True)
    covered = F.interpolate(
        merged.covered[None, None].float(), (height, width), mode="nearest-exact"
    )[0, 0].bool()
    heatmaps, ranges = _normalised(grown, covered)
    return FiveCrops(
        heatmaps=heatmaps[0],
        targets=merged.targets[0],
        scores=merged.scores[0],
        probabilities=merged.log_probabilities[0].exp(),
        covered=covered,
        flat=is_flat(ranges)[0],
        crops=merged.crops,
    )


def crop_corners(photo: tuple[int, int], crop: tuple[int, int]) -> list[tuple[int, int]]:
    """Top left pixels (row, column) of the crops: four corners, then the centre, as in torchvision.

    Args:
        photo, crop: (H, W), pixels.
    """
    rows, columns = photo[0] - crop[0], photo[1] - crop[1]
    centre = (round(rows / 2), round(columns / 2))
    return [(0, 0), (0, columns), (rows, 0), (rows, columns), centre]


def _by_photo(values: Tensor) -> Tensor:
    """[B*5,...] -> [B,5,...]."""
    return values.unflatten(0, (-1, CROPS))


def _raw(spec: CamSpec, found: Explanation) -> Tensor:
    """The fused maps before they were normalised, [N,K,H,W]."""
    if not spec.normalize.endswith("map"):
        return found.heatmaps
    low, high = found.ranges[..., 0, None, None], found.ranges[..., 1, None, None]
    return low + found.heatmaps * (high - low + spec.eps)


def _laid(
    maps: Tensor, corners: Sequence[tuple[int, int]], size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Means [B,K,h,w] of the crops' maps [B,5,K,H,W] in place, and the covered pixels [h,w]."""
    batch, _, count, h, w = maps.shape
    sums = maps.new_zeros((batch, count, *size))
    counts = maps.new_zeros(size)
    for crop, (y, x) in zip(maps.unbind(1), corners, strict=True):
        sums[..., y : y + h, x : x + w] += crop
        counts[y : y + h, x : x + w] += 1
    return sums / counts.clamp(min=1), counts > 0


def _normalised(maps: Tensor, covered: Tensor) -> tuple[Tensor, Tensor]:
    """Min-max of maps [B,K,h,w] over the covered pixels [h,w], 0 elsewhere; ranges [B,K,2]."""
    low = torch.where(covered, maps, torch.inf).amin((-2, -1))
    high = torch.where(covered, maps, -torch.inf).amax((-2, -1))
    ranges = torch.stack([low, high], -1)
    low, span = low[..., None, None], (high - low)[..., None, None]
    empty = is_flat(ranges)[..., None, None] | ~covered
    return torch.where(empty, 0.0, (maps - low) / torch.where(empty, 1.0, span)), ranges
