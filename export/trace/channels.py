"""Find how many channels the images of a model have."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from combicam.export.trace.checkpointing import plain_forward
from combicam.export.trace.snapshot import another

RGB = 3


def input_channels(model: nn.Module, input_size: tuple[int, int]) -> int:
    """C of the images [B,C,H,W] that a model takes: 3 if it runs on RGB, else what it runs on.

    Tried are the channels of its convolutions and normalisations, then 1. A model that runs on none
    of them is taken to be of RGB, so that the error tells why it does not run.

    Args:
        model: in eval mode, parameters frozen.
        input_size: (H, W), pixels.
    """
    return next((c for c in _candidates(model) if _runs(model, c, input_size)), RGB)


def _candidates(model: nn.Module) -> Iterator[int]:
    found = [RGB]
    for module in model.modules():
        for name in ("in_channels", "num_features", "num_channels"):
            count = getattr(module, name, None)
            if isinstance(count, int) and count > 0:
                found.append(count)
    yield from dict.fromkeys([*found, 1])


class _FirstConvolution(Exception):
    """A convolution took the images as they are."""


def _runs(model: nn.Module, channels: int, input_size: tuple[int, int]) -> bool:
    """Whether a model gives one result for one image; on fake tensors, to its first convolution."""
    model = another(model)  # modules may keep tensors of their first call
    like = next(model.parameters(), torch.empty(0))
    shape = (1, channels, *input_size)

    def stop(_module: nn.Module, args: tuple[object, ...], _output: object) -> None:
        if args and isinstance(args[0], Tensor) and tuple(args[0].shape) == shape:
            raise _FirstConvolution

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(stop)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    try:
        with mode, torch.inference_mode(False), torch.no_grad(), plain_forward(like.device):
            output = model(torch.empty(shape, dtype=like.dtype, device=like.device))
    except _FirstConvolution:
        return True
    except Exception:  # any error: it does not run on such images
        return False
    return not isinstance(output, Tensor) or len(output) == 1
