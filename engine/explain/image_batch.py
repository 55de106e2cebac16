"""Make one tensor of the images that a caller gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from combicam.engine.images.channels import (
    batch_channels,
    image_channels,
    known_channels,
    photo_pixels,
)

_KINDS = {1: " (grey)", 3: " (RGB)"}


def expected(channels: int, takes_bytes: bool, size: tuple[int | str, int | str]) -> str:
    """The beginning of a message: which images an explainer takes."""
    h, w = size
    text = f"Explainer: expected images as float [B,{channels},{h},{w}] (normalised)"
    if takes_bytes:
        text += f" or uint8 [B,{h},{w},{channels}]{_KINDS.get(channels, '')}"
    return text


def image_tensor(images: Any, channels: int = 3, takes_bytes: bool = True) -> Tensor:
    """Images as a tensor, float [B,C,H,W] or uint8 [B,H,W,C], without checking their size.

    Args:
        images: a tensor or an array, also a flipped view; uint8 [B,C,H,W] is turned; a list of
            tensors or arrays of the same shape is stacked. For C of 1 or 3, uint8 images are
            photos: RGB becomes grey or grey RGB, [B,H,W] and lists of [H,W] are grey, and images of
            PIL are converted.
        channels: C.
        takes_bytes: whether uint8 is taken, too.

    Raises:
        ValueError, TypeError: a single image, images of several sizes, channels at the end of
            floats, or bytes that are not taken; the message says what to do.
    """
    ask = f"{expected(channels, takes_bytes, ('H', 'W'))}, got "
    if isinstance(images, Image.Image):
        images = [images]
    if isinstance(images, Sequence) and not isinstance(images, (str, bytes)):
        images = _stacked(images, channels, ask)
    batch = images if isinstance(images, Tensor) else torch.from_numpy(_array(images, ask))
    shape, known = tuple(batch.shape), known_channels(channels)
    if batch.dtype == torch.uint8 and not takes_bytes:
        raise ValueError(
            f"{ask}{batch.dtype} {shape}; give the explainer a Preprocess with mean and std of "
            f"{channels} channels, by which bytes are normalised"
        )
    if batch.dtype == torch.uint8 and channels == 1 and batch.ndim == 3 and shape[2] not in known:
        batch = batch[..., None]
        shape = tuple(batch.shape)
    if batch.ndim == 3 and {shape[0], shape[2]} & set(known):
        raise ValueError(f"{ask}a single image {shape}; pass images[None]")
    if batch.ndim != 4:
        return batch
    if batch.is_floating_point() and shape[1] != channels and shape[3] == channels:
        raise ValueError(
            f"{ask}{batch.dtype} {shape}; pass images.permute(0, 3, 1, 2), normalised"
            + (", or uint8" if takes_bytes else "")
        )
    if batch.dtype != torch.uint8:
        return batch
    if shape[3] not in known and shape[1] in known:
        batch = batch.permute(0, 2, 3, 1)
    elif shape[3] == 4 and 3 in known:
        raise ValueError(
            f"{ask}{batch.dtype} {shape}, perhaps with alpha; pass images[..., :3], or PIL images"
        )
    return batch_channels(batch, channels) if batch.shape[3] in known else batch


def _array(images: Any, ask: str) -> np.ndarray[Any, Any]:
    array = np.asarray(images)
    if array.dtype == object or array.dtype.kind not in "biuf":
        raise TypeError(f"{ask}{type(images).__name__} of {array.dtype}")
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    # torch has no negative strides, as images[..., ::-1] has, and warns of what it may not write.
    fits = all(stride >= 0 for stride in array.strides) and array.flags.writeable
    return array if fits else array.copy()


def _stacked(images: Sequence[Any], channels: int, ask: str) -> Any:
    """Images of one shape as one tensor or array."""
    if not images:
        raise ValueError(f"{ask}an empty list")
    if all(isinstance(image, Tensor) for image in images):
        arrays: list[Any] = list(images)
    else:
        arrays = [_one(image, channels, ask) for image in images]
    shapes = sorted({tuple(array.shape) for array in arrays})
    if len(shapes) > 1:
        raise ValueError(
            f"{ask}images of several shapes ({', '.join(map(str, shapes[:3]))}); resize them to "
            "one, photos by explainer.prepare"
        )
    return torch.stack(arrays) if isinstance(arrays[0], Tensor) else np.stack(arrays)


def _one(image: Any, channels: int, ask: str) -> np.ndarray[Any, Any]:
    """One image of a list; a photo with C channels."""
    known = known_channels(channels)
    if isinstance(image, Image.Image):
        if len(known) == 1:
            raise ValueError(
                f"{ask}an image of PIL ({image.mode}), which is a photo of 1 or 3 channels; pass "
                "arrays"
            )
        return photo_pixels(image, channels)
    array = _array(image, ask)
    if array.dtype != np.uint8 or len(known) == 1:
        return array
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim == 3 and array.shape[2] in known:
        return image_channels(array, channels)
    return array
