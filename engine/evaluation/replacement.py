"""Fill removed pixels: with a blurred copy, the mean colour, or black."""

from __future__ import annotations

import torch
from torch import Tensor

from combicam.engine.evaluation.blur import gaussian_blur
from combicam.export.preprocess import Preprocess

BASELINES = ("blur", "mean", "black")
# Sigma of the blur, as a share of the shorter side: 11 px of 224. It keeps colours, not objects.
BLUR = 0.05


def baseline_images(images: Tensor, kind: str, preprocess: Preprocess) -> Tensor:
    """Images without their content, to replace removed pixels; in the model's normalised space.

    Args:
        images: float [B,C,H,W], normalised.
        kind: ``blur``, a Gaussian of 5 % of the shorter side; ``mean``, the mean colour that
            preprocessing subtracts (zeros after it); ``black``.
        preprocess: of the model; its mean and deviation define black.

    Returns:
        float [B,C,H,W].

    Raises:
        ValueError: an unknown kind, or black without mean and deviation.
    """
    if kind == "blur":
        return gaussian_blur(images, BLUR * min(images.shape[2:]))
    if kind == "mean":
        return torch.zeros_like(images)
    if kind == "black":
        if not preprocess.takes_bytes:
            raise ValueError(
                f"baseline: expected mean and std of {preprocess.channels} channels, which define "
                "black, got none; choose 'blur' or 'mean'"
            )
        mean, std = (images.new_tensor(v)[:, None, None] for v in (preprocess.mean, preprocess.std))
        return (-mean / std).expand_as(images)
    raise ValueError(f"baseline: expected one of {BASELINES}, got {kind!r}")
