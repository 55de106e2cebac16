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
SLOTS = 16


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


# Per layer [C,h,w], strides of acts [B,C,h,w], and of grads [B,K,C,h,w].
Described = tuple[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]], ...]


def described(acts: Sequence[Tensor], grads: Sequence[Tensor]) -> Described:
    """All that a plan for these layers depends on, whatever the batch size."""
    found = [(a.shape[1:], a.stride(), g.stride()) for a, g in zip(acts, grads, strict=True)]
    if type(acts[0]) is Tensor:
        return tuple(found)
    return tuple((ints(shape), ints(a), ints(g)) for shape, a, g in found)


def ints(numbers: Sequence[int]) -> tuple[int, ...]:
    """Numbers as constants of the graph that is being traced, where they may be symbols."""
    return tuple(map(int, numbers))


def is_addressable(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether the pixels [...,h,w] have one stride, as in NCHW and channels-last.

    Offsets within an image and target fit 32 bits; those of images and targets take 64 bits.
    """
    height, width = shape[-2:]
    return height == 1 or width == 1 or strides[-2] == strides[-1] * width


def addressable(x: Tensor) -> Tensor:
    """x, or a copy whose pixels have one stride."""
    return x if is_addressable(x.shape, x.stride()) else x.contiguous()


def _pixel_stride(shape: Sequence[int], strides: Sequence[int]) -> int:
    """Elements from a pixel to the next; of a single row or column, the stride that is used."""
    if shape[-1] > 1:
        return strides[-1]
    return strides[-2] if shape[-2] > 1 else 1


def layer_of(shape: Sequence[int], acts: Sequence[int], grads: Sequence[int]) -> Layer:
    """Describe [C,h,w] for kernels, by the strides of addressable tensors."""
    channels, height, width = shape
    return Layer(
        channels,
        height,
        width,
        (acts[0], acts[1], _pixel_stride(shape, acts)),
        (grads[0], grads[1], grads[2], _pixel_stride(shape, grads)),
    )


def slots(tensors: Sequence[Tensor], spare: Tensor) -> list[Tensor]:
    """Pad to SLOTS tensors with ``spare``, which is never read.

    It may not be a tensor of the model: Inductor would compute it once per slot.
    """
    return [*tensors, *[spare] * (SLOTS - len(tensors))]
