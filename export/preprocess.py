"""Define ``Preprocess``, how an image becomes a model's input; stored in every artifact."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
PHOTO_CHANNELS = (1, 3)  # grey, RGB
# ImageNet's; of grey images their average, as timm takes it. Other images have none in common.
_MEANS: dict[int, tuple[float, ...]] = {3: IMAGENET_MEAN, 1: (sum(IMAGENET_MEAN) / 3,)}
_STDS: dict[int, tuple[float, ...]] = {3: IMAGENET_STD, 1: (sum(IMAGENET_STD) / 3,)}
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
        mean, std: per channel, of values in [0, 1], by which bytes are normalised; the default is
            ImageNet's for RGB, and its average, 0.449 and 0.226, for one channel. For other numbers
            of channels there is none: without both, the model takes floats alone.
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
        channels: C of the model's input, 1 for grey images, 3 for RGB; default: as many as
            ``mean`` has, else 3. Photos are decoded for 1 and 3: grey is luma, 0.299 R + 0.587 G +
            0.114 B, and a grey photo's only channel is repeated for RGB.

    Raises:
        ValueError: an invalid value.
    """

    input_size: tuple[int, int]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    resize: str = "crop"
    crop_pct: float = 0.875
    interpolation: str = "bilinear"
    side_step: int = 32
    channels: int = 0

    def __post_init__(self) -> None:
        size = tuple(int(s) for s in self.input_size)
        if len(size) != 2 or min(size) < 1:
            raise ValueError(
                f"Preprocess: expected input_size as (H, W) in pixels, got {self.input_size!r}"
            )
        object.__setattr__(self, "input_size", size)
        self._set_channels()
        if min(self.std, default=1) <= 0:
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

    def _set_channels(self) -> None:
        """Fill in ``channels``, and ``mean`` and ``std`` where they have a default."""
        count = self.channels or len(self.mean) or len(self.std) or 3
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"Preprocess: expected channels as an int >= 1, got {count!r}")
        object.__setattr__(self, "channels", count)
        for what, defaults in (("mean", _MEANS), ("std", _STDS)):
            values = tuple(getattr(self, what)) or defaults.get(count, ())
            object.__setattr__(self, what, tuple(float(v) for v in values))
        if len(self.mean) == len(self.std) == 0:
            return
        for what in ("mean", "std"):
            if len(getattr(self, what)) != count:
                raise ValueError(
                    f"Preprocess: expected {count} values of {what}, one per channel, got "
                    f"{getattr(self, what)!r}"
                )

    @property
    def takes_bytes(self) -> bool:
        """Whether uint8 images can be normalised: mean and deviation are known."""
        return bool(self.mean)

    @property
    def takes_photos(self) -> bool:
        """Whether photos become inputs: of one channel or three."""
        return self.channels in PHOTO_CHANNELS

    def check_photos(self, operation: str) -> None:
        """Check that photos become inputs.

        Args:
            operation: for the message.

        Raises:
            ValueError: they do not.
        """
        if not self.takes_photos:
            raise ValueError(
                f"{operation}: expected a network of 1 channel (grey) or 3 (RGB), which takes "
                f"photos, got one of {self.channels}; call an Explainer with its images, float "
                f"[B,{self.channels},H,W]"
            )

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
        """uint8 [B,H,W,C] -> ``dtype`` [B,C,H,W], (x / 255 - mean) / std.

        In 16 bit on a GPU channels-last in memory, else contiguous: so models run fastest.

        Raises:
            ValueError: other images, or no mean and deviation.
        """
        if not self.takes_bytes:
            raise ValueError(
                f"Preprocess: expected mean and std of {self.channels} channels, by which bytes "
                f"are normalised, got none; give them, or float [B,{self.channels},H,W], normalised"
            )
        # Its operator takes a second to import, which processes that only decode need not.
        from combicam.kernels.normalize import normalize

        normal = normalize(images, self.mean, self.std, dtype)
        return normal if images.is_cuda and dtype.itemsize == 2 else normal.contiguous()

    def resized(self, input_size: tuple[int, int]) -> Self:
        """A copy with another input size."""
        return replace(self, input_size=input_size)

    def in_colour(self) -> Self:
        """A copy that decodes the same part of a photo in RGB, to show it."""
        return self if self.channels == 3 else replace(self, channels=3, mean=(), std=())

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields; ``channels`` only if ``mean`` does not say it."""
        values = asdict(self)
        if self.takes_bytes:
            del values["channels"]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`to_dict`."""
        known: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
        }
        return cls(**known)
