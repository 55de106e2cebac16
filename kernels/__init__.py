"""Compute class activation maps: one operation per file, each with its torch reference."""

from typing import TYPE_CHECKING

from combicam.lazy import make_lazy

if TYPE_CHECKING:
    from combicam.kernels.cam_head import cam_head as cam_head
    from combicam.kernels.cam_head import cam_head_reference as cam_head_reference
    from combicam.kernels.combine import combine_reference as combine_reference
    from combicam.kernels.normalize import normalize as normalize
    from combicam.kernels.normalize import normalize_reference as normalize_reference
    from combicam.kernels.weigh import METHODS as METHODS
    from combicam.kernels.weigh import weigh_reference as weigh_reference

__all__ = make_lazy(
    __name__,
    {
        "combicam.kernels.cam_head": ("cam_head", "cam_head_reference"),
        "combicam.kernels.combine": ("combine_reference",),
        "combicam.kernels.normalize": ("normalize", "normalize_reference"),
        "combicam.kernels.weigh": ("METHODS", "weigh_reference"),
    },
)
