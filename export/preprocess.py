"""Define ``Preprocess``, how an image becomes a model's input; stored in every artifact."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from combicam.kernels.normalize import normalize

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
RESIZES = ("squash", "crop", "short-side", "cover")
MAX_ASPECT = 4
# An image of a single row must not be scaled to gigabytes.
MAX_COVER_ASPECT = 16
INTERPOLATIONS = ("bilinear", "bicubic", "lanczos", "nearest")


@dataclass(frozen=True)
class Preprocess:
    """Resizing and normalisation.

    Args:
        input_size: (H, W) of the model's input, pixels.
        mean, std: per channel, of RGB in [0, 1].
        resize: ``squash`` scales the whole image to (H, W); ``crop`` scales it to cover
            (H, W) / crop_pct and crops the centre, like timm and torchvision; ``short-side``
            scales the whole image so that its shorter side is min(H, W), so inputs differ in size,
            see :meth:`size_of`; ``cover`` scales like ``crop`` but keeps the whole image, to cut
            five crops from it.
        crop_pct: see ``resize``.
        side_step: for ``short-side``, the longer side is rounded to a multiple of it, pixels, which
            stretches the image by at most half a step. Every size has its own graph; 1 keeps the
            aspect ratio exactly, and suits images of few sizes.
        interpolation: Pillow's filter of that name, antialiased.

    Raises:
        ValueError: an invalid value.
    """

    input_size: tuple[int, int]
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    resize: str = "crop"
    crop_pct: float = 0.875
    interpolation: str = "bilinear"
    side_step: int = 32

    def __post_init__(self) -> None:
        size = tuple(int(s) for s in self.input_size)
        if len(size) != 2 or min(size) < 1:
            raise ValueError(
                f"Preprocess: expected input_size as (H, W) in pixels, got {self.input_size!r}"
            )
        object.__setattr__(self, "input_size", size)
        for what, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != 3:
                raise ValueError(f"Preprocess: expected 3 values of {what}, got {values!r}")
            object.__setattr__(self, what, tuple(float(v) for v in values))
        if min(self.std) <= 0:
            raise ValueError(f"Preprocess: expected std > 0, got {self.std!r}")
        if self.resize not in RESIZES:
            raise ValueError(f"Preprocess: expected resize in {RESIZES}, got {self.resize!r}")
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(
                f"Preprocess: expected interpolation in {INTERPOLATIONS}, "
                f"got {self.interpolation!r}"
            )
        if not 0 < self.crop_pct <= 1:
            raise ValueError(f"Preprocess: expected 0 < crop_pct <= 1, got {self.crop_pct!r}")
        if self.side_step < 1:
            raise ValueError(f"Preprocess: expected side_step >= 1, got {self.side_step!r}")

    @property
    def has_one_size(self) -> bool:
        """Whether all images are resized to ``input_size``."""
        return self.resize in ("squash", "crop")

    def size_of(self, width: int, height: int) -> tuple[int, int]:
        """(H, W) of the resized image, pixels.

        ``short-side``: the longer side is short * longer / shorter, rounded to ``side_step`` and
        at most four times the shorter; longer images are squeezed to that.
        ``cover``: see :meth:`covering`; images longer than 16 : 1 are squeezed to that.

        Args:
            width, height: of the upright image, pixels.
        """
        if self.has_one_size:
            return self.input_size
        if self.resize == "cover":
            longest = MAX_COVER_ASPECT * min(width, height)
            return self.covering(min(width, longest), min(height, longest))
        short = min(self.input_size)
        exact = short * min(max(width, height) / min(width, height), MAX_ASPECT)
        long = max(short, round(exact / self.side_step) * self.side_step)
        return (short, long) if width >= height else (long, short)

    def covering(self, width: int, height: int) -> tuple[int, int]:
        """(H, W) of the whole image scaled to cover (H, W) / crop_pct, with its aspect ratio.

        Rounded like in timm and torchvision.

        Args:
            width, height: of the upright image, pixels.
        """
        high, wide = (math.floor(side / self.crop_pct) for side in self.input_size)
        if width * high >= height * wide:
            return high, high * width // height
        return wide * height // width, wide

    def normalize(self, images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """uint8 [B,H,W,3] -> ``dtype`` [B,3,H,W], (x / 255 - mean) / std.

        Channels-last in memory on a GPU and contiguous on a CPU, where models run fastest that way.
        """
        normal = normalize(images, self.mean, self.std, dtype)
        return normal if images.is_cuda else normal.contiguous()

    def resized(self, input_size: tuple[int, int]) -> Self:
        """A copy with another input size."""
        return replace(self, input_size=input_size)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`to_dict`."""
        known: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
        }
        return cls(**known)
