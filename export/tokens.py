"""Reshape the tokens of a vision transformer's layer into an activation [B,C,h,w]."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor, nn

# Layouts in which layers return activations: [B,C,h,w], [B,h,w,C], or [B,prefix + h w,C].
LAYOUTS = ("channels_first", "channels_last", "tokens")
# Class token, distillation token, registers: no known model has more in front of a grid.
MAX_PREFIX = 16
CONVS = (nn.Conv2d, nn.ConvTranspose2d)


class TokenGrid(NamedTuple):
    """The grid of tokens [B,prefix + h w,C], row by row; made by :func:`tokens`."""

    h: int
    w: int
    prefix: int = 1

    @property
    def length(self) -> int:
        """Number of tokens of an image."""
        return self.h * self.w + self.prefix


def tokens(h: int, w: int, prefix: int = 1) -> TokenGrid:
    """Describe the token grid of a transformer, if it is not detected automatically.

    The output [B,prefix + h w,C] of a layer is explained as the activation [B,C,h,w] without the
    first ``prefix`` tokens. Gradients are taken with respect to the layer's output, and reshaped
    in the same way.

    Args:
        h, w: rows and columns of tokens: the input size divided by the patch size.
        prefix: leading tokens that are not part of the image: class, distillation, registers.

    Returns:
        The value for ``Explainer(tokens=...)`` or ``CamSpec(tokens=...)``.

    Raises:
        ValueError: an invalid grid.

    Source: ``reshape_transform`` of pytorch-grad-cam.
    """
    for name, value, least in (("h", h, 1), ("w", w, 1), ("prefix", prefix, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"tokens: expected {name} as an int >= {least}, got {value!r}")
    return TokenGrid(h, w, prefix)


class Place(NamedTuple):
    """The position of channels and grid in a tensor."""

    channels: int
    height: int
    width: int
    layout: str = "channels_first"
    prefix: int = 0


def as_grid(x: Tensor, place: Place) -> Tensor:
    """An activation, or its gradient with K in front, as [...,C,h,w]."""
    if place.layout == "tokens":
        x = x[..., place.prefix :, :].unflatten(-2, (place.height, place.width))
    return x if place.layout == "channels_first" else x.movedim(-1, -3)


def find_places(
    outputs: Mapping[str, Tensor],
    modules: Mapping[str, nn.Module],
    size: tuple[int, int],
    given: tuple[int, int, int] | None = None,
) -> dict[str, Place]:
    """Find the returned tensors that are grids, and their layouts.

    Cases:

    1. [1,C,h,w] in general; [1,h,w,C] (Swin) if a linear layer or a layer norm returned it, or
       after such a layer of the same shape. If the shape is valid for [1,C,h,w] as well, a module
       with convolutions is taken to return that, and one without layers to keep its input's layout;
    2. [1,N,C] with the N of ``given``;
    3. [1,N,C] where N is the number of cells of an earlier grid (such as the patch embedding) plus
       a prefix of at most ``MAX_PREFIX`` tokens; of several grids, one whose prefix was seen
       already, else the latest;
    4. [1,N,C] with a quarter of the cells of the latest token grid, and its prefix (LeViT);
    5. intermediate tensors of attention, [1,heads,N,d] and [1,heads,N,N], are not grids.

    Args:
        outputs: of modules for one image, in order of execution.
        modules: by name.
        size: (H, W) of the image.
        given: the caller's own grid, (h, w, prefix).

    Returns:
        name -> place of those that are grids, in order of execution.
    """
    places: dict[str, Place] = {}
    grids: list[Place] = []  # the latest first
    lengths: set[int] = set()
    for name, x in outputs.items():
        shape = tuple(int(n) for n in x.shape)
        found = None
        if len(shape) == 4 and shape[0] == 1 and shape[2] not in lengths:
            found = _of_image(shape, modules[name], size, places)
        elif len(shape) == 3 and shape[0] == 1:
            found = _given(shape, given) or _of_tokens(shape, grids)
        if found is None:
            continue
        places[name] = found
        if found.layout == "tokens":
            lengths.add(shape[1])
        if found.height * found.width > 1 and _fits(found.height, found.width, size):
            grids.insert(0, found)
    return places


def _of_image(
    shape: tuple[int, ...], module: nn.Module, size: tuple[int, int], before: Mapping[str, Place]
) -> Place:
    _, a, b, c = shape
    first, last = Place(a, b, c), Place(c, a, b, "channels_last")
    if _is_last(module, c):
        return last
    same = [p for p in before.values() if p in (first, last)]
    if last not in same:
        return first
    if not _fits(b, c, size):
        return last
    if any(isinstance(m, CONVS) for m in module.modules()):
        return first
    return last if any(_is_last(m) for m in module.modules()) else same[-1]


def _is_last(module: nn.Module, channels: int | None = None) -> bool:
    """Whether a layer works on the last axis; subclasses of LayerNorm may permute."""
    if isinstance(module, nn.Linear):
        return True
    if type(module) is not nn.LayerNorm or len(module.normalized_shape) != 1:
        return False
    return channels in (None, module.normalized_shape[0])


def _given(shape: tuple[int, ...], given: tuple[int, int, int] | None) -> Place | None:
    if given is None or shape[1] != TokenGrid(*given).length:
        return None
    h, w, prefix = given
    return Place(shape[2], h, w, "tokens", prefix)


def _of_tokens(shape: tuple[int, ...], grids: list[Place]) -> Place | None:
    _, length, channels = shape
    before = {length - g.height * g.width: g for g in reversed(grids)}  # the latest wins
    fitting = [n for n in before if 0 <= n <= MAX_PREFIX]
    seen = {g.prefix for g in grids if g.layout == "tokens"}
    for prefix in sorted(fitting, key=lambda n: (n not in seen, n)):
        grid = before[prefix]
        return Place(channels, grid.height, grid.width, "tokens", prefix)
    latest = next((g for g in grids if g.layout == "tokens"), None)
    if latest is not None:
        h, w = -(-latest.height // 2), -(-latest.width // 2)
        if length == h * w + latest.prefix:
            return Place(channels, h, w, "tokens", latest.prefix)
    return None


def _fits(h: int, w: int, size: tuple[int, int]) -> bool:
    """Whether a single stride reduces the image to h x w cells, up to rounding."""
    if not (h and w) or h > size[0] or w > size[1]:
        return False
    low = max(size[0] / (h + 1), size[1] / (w + 1))
    high = min(size[0] / max(h - 1, 0.5), size[1] / max(w - 1, 0.5))
    return low <= high
