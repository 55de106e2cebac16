"""Compute class activation maps: one operation per file, each with its torch reference."""

from combicam.kernels.cam_head import cam_head, cam_head_reference
from combicam.kernels.combine import combine_reference
from combicam.kernels.normalize import normalize, normalize_reference
from combicam.kernels.weigh import METHODS, weigh_reference

__all__ = [
    "METHODS",
    "cam_head",
    "cam_head_reference",
    "combine_reference",
    "normalize",
    "normalize_reference",
    "weigh_reference",
]
