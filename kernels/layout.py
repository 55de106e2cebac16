"""Shape and stride descriptors for the layers of one kernel launch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from combicam.kernels.jit import fields

# Fields of Layer.arguments(): C, P, strides of acts and of grads.
CHANNELS, PIXELS, ACTS_B, ACTS_C, ACTS_P, GRADS_B, GRADS_K, GRADS_C, GRADS_P = fields(9)
# Fields of a tile: targets, channels and pixels of a block; pixels of a program of pool.
TILE_K, TILE_C, TILE_P, TILE_CHUNK = fields(4)

# Layers that one launch takes. Kernels name their pointers one by one, since Inductor and
# AOTInductor embed no kernel that takes a tuple of tensors.
SLOTS = 8


@dataclass(frozen=True)
class Layer:
    """One layer's activations [B,C,h,w] and gradients [B,K,C,h,w]; P = h w pixels.

    Strides count elements: of image (b), target (k), channel (c), pixel (p).
    """

    channels: int
    height: int
    width: int
    act_strides: tuple[int, int, int]  # b, c, p
    grad_strides: tuple[int, int, int, int]  # b, k, c, p

    @property
    def pixels(self) -> int:
        """P."""
        return self.height * self.width

    def arguments(self) -> tuple[int, ...]:
        """As kernels take it; they name its fields ``CHANNELS`` and so on."""
        return (self.channels, self.pixels, *self.act_strides, *self.grad_strides)


def addressable(x: Tensor) -> Tensor:
    """x if its pixels have a constant stride, as in NCHW and channels-last; else a copy.

    Offsets within an image and target fit 32 bits; those of images and targets take 64 bits.
    """
    width = x.shape[-1]
    if x.shape[-2] > 1 and width > 1 and x.stride(-2) != x.stride(-1) * width:
        return x.contiguous()
    return x


def _pixel_stride(x: Tensor) -> int:
    """Elements from a pixel to the next; of a single row or column, the stride that is used."""
    if x.shape[-1] > 1:
        return int(x.stride(-1))
    return int(x.stride(-2)) if x.shape[-2] > 1 else 1


def layer_of(acts: Tensor, grads: Tensor) -> Layer:
    """Describe two ``addressable`` tensors for kernels."""
    channels, height, width = (int(n) for n in acts.shape[1:])
    return Layer(
        channels,
        height,
        width,
        (int(acts.stride(0)), int(acts.stride(1)), _pixel_stride(acts)),
        (
            int(grads.stride(0)),
            int(grads.stride(1)),
            int(grads.stride(2)),
            _pixel_stride(grads),
        ),
    )


def slots(tensors: Sequence[Tensor], spare: Tensor) -> list[Tensor]:
    """Pad to SLOTS tensors with ``spare``, which is never read.

    It may not be a tensor of the model: Inductor would compute it once per slot.
    """
    return [*tensors, *[spare] * (SLOTS - len(tensors))]
