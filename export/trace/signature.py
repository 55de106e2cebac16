"""Describe the inputs of a joint graph."""

from __future__ import annotations

from dataclasses import dataclass

from combicam.export.spec import check_choice

TARGET_INPUTS = ("none", "classes", "weights")
DTYPES = ("float32", "bfloat16", "float16", "float64")


@dataclass(frozen=True)
class Signature:
    """The inputs of a joint graph.

    Attributes:
        input_size: (H, W) of ``images``, float [B,C,H,W], normalised.
        classes: n, number of logits.
        dtype: of the computation, one of ``DTYPES``; inputs and outputs are float32.
        target_input: ``none``: the graph explains its K best classes; ``classes``: a second input
            ``targets`` int64 [B,K] names them, -1 the best, -2 the second best, and so on (see
            :func:`~combicam.export.trace.scores.explained_classes`); ``weights``: ``targets`` is
            float32 [B,K,n], one weight per class: a region, or with weights of both signs a
            contrast (see :func:`~combicam.export.trace.scores.target_scores`).
        channels: C of the images.

    Raises:
        ValueError: an unknown dtype or target_input.
    """

    input_size: tuple[int, int]
    classes: int
    dtype: str = "float32"
    target_input: str = "classes"
    channels: int = 3

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return (self.channels, *self.input_size)

    def __post_init__(self) -> None:
        check_target_input(self.target_input)
        check_choice("trace", "dtype", self.dtype, DTYPES)


def check_target_input(target_input: str) -> None:
    """Check that a graph can have this target input.

    Raises:
        ValueError: it is not one of ``TARGET_INPUTS``.
    """
    check_choice("trace", "target_input", target_input, TARGET_INPUTS)
