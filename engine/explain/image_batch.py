"""Make one tensor of the images that a caller gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

_ASK = "Explainer: expected images as float [B,3,H,W] (normalised) or uint8 [B,H,W,3] (RGB), got "


def image_tensor(images: Any) -> Tensor:
    """Images as a tensor, float [B,3,H,W] or uint8 [B,H,W,3], without checking their size.

    Args:
        images: a tensor or an array, also a flipped view; uint8 [B,3,H,W] is turned; a list of
            tensors or arrays of the same shape is stacked; PIL images are converted to RGB.

    Raises:
        ValueError, TypeError: a single image, images of several sizes, or channels at the end of
            floats; the message says what to do.
    """
    if isinstance(images, Image.Image):
        images = [images]
    if isinstance(images, Sequence) and not isinstance(images, (str, bytes)):
        images = _stacked(images)
    batch = images if isinstance(images, Tensor) else torch.from_numpy(_array(images))
    shape = tuple(batch.shape)
    if batch.ndim == 3 and 3 in (shape[0], shape[2]):
        raise ValueError(f"{_ASK}a single image {shape}; pass images[None]")
    if batch.ndim == 4 and shape[1] != 3 and shape[3] == 3 and batch.is_floating_point():
        raise ValueError(
            f"{_ASK}{batch.dtype} {shape}; pass images.permute(0, 3, 1, 2), normalised, or uint8"
        )
    if batch.ndim == 4 and shape[1] == 3 and shape[3] != 3 and batch.dtype == torch.uint8:
        return batch.permute(0, 2, 3, 1)
    return batch


def _array(images: Any) -> np.ndarray[Any, Any]:
    array = np.asarray(images)
    if array.dtype == object or array.dtype.kind not in "biuf":
        raise TypeError(f"{_ASK}{type(images).__name__} of {array.dtype}")
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    # torch has no negative strides, as images[..., ::-1] has, and warns of what it may not write.
    fits = all(stride >= 0 for stride in array.strides) and array.flags.writeable
    return array if fits else array.copy()


def _stacked(images: Sequence[Any]) -> Any:
    """Images of one shape as one tensor or array."""
    if not images:
        raise ValueError(f"{_ASK}an empty list")
    if all(isinstance(image, Tensor) for image in images):
        arrays: list[Any] = list(images)
    else:
        arrays = [
            np.asarray(image.convert("RGB")) if isinstance(image, Image.Image) else _array(image)
            for image in images
        ]
    shapes = sorted({tuple(array.shape) for array in arrays})
    if len(shapes) > 1:
        raise ValueError(
            f"{_ASK}images of several shapes ({', '.join(map(str, shapes[:3]))}); resize them to "
            "one"
        )
    return torch.stack(arrays) if isinstance(arrays[0], Tensor) else np.stack(arrays)
