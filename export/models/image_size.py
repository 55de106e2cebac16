"""Read the option ``--img-size``: one number for a square, or height and width."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import tyro


def as_size(size: int | Sequence[int]) -> tuple[int, int]:
    """(H, W) of one number of pixels for both, or of two.

    Raises:
        ValueError: anything else.
    """
    try:
        height, width = map(operator.index, size if isinstance(size, Sequence) else (size, size))
    except (TypeError, ValueError):
        raise _refusal(size) from None
    if min(height, width) < 1:
        raise _refusal(size)
    return height, width


def _refusal(got: object) -> ValueError:
    return ValueError(
        "img_size: expected one number of pixels (224 means 224 x 224), or height and width, got "
        f"{got}"
    )


def _read(words: list[str]) -> tuple[int, int] | None:
    if words == ["None"]:
        return None
    try:
        sides = [int(word) for word in words]
        return as_size(sides[0] if len(sides) == 1 else sides)
    except ValueError:
        raise _refusal(" ".join(words) or "none") from None


IMAGE_SIZE = tyro.constructors.PrimitiveConstructorSpec(
    nargs="*",
    metavar="H [W]",
    instance_from_str=_read,
    is_instance=lambda value: value is None or isinstance(value, tuple),
    str_from_instance=lambda size: ["None"] if size is None else [str(side) for side in size],
)
