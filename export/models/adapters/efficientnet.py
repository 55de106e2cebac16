"""Build EfficientNet-B4 with the names and padding of the package efficientnet_pytorch 0.7.0.

That package fixes the padding of every convolution for one image size (380 pixels for B4), and pads
both sides by the larger half of TensorFlow's "same" padding. This determines the layer sizes for
other image sizes.

Source: Tan and Le, EfficientNet, ICML 2019; github.com/lukemelas/EfficientNet-PyTorch 0.7.0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_EPS = 1e-3
_SQUEEZE = 0.25


@dataclass(frozen=True)
class Stage:
    """Blocks of the same shape; the first of them has the stride.

    Attributes:
        repeats: number of blocks.
        kernel, stride: of their depthwise convolutions.
        expand: factor of the number of channels inside a block.
        channels: of the output.
    """

    repeats: int
    kernel: int
    stride: int
    expand: int
    channels: int


B4 = (
    Stage(2, 3, 1, 1, 24),
    Stage(4, 3, 2, 6, 32),
    Stage(4, 5, 2, 6, 56),
    Stage(6, 3, 2, 6, 112),
    Stage(6, 5, 1, 6, 160),
    Stage(8, 5, 2, 6, 272),
    Stage(2, 3, 1, 6, 448),
)


def _padding(size: int, kernel: int, stride: int) -> int:
    """Padding on every side of an image of ``size``; 0.7.1 pads one pixel less at the start."""
    total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
    return total - total // 2


class Block(nn.Module):
    """Expand, filter each channel, weigh the channels, project; with a shortcut if shapes match.

    Args:
        channels: of the input.
        stage: shape of the block.
        stride: of this block.
        size: image size that the padding is for.
    """

    def __init__(self, channels: int, stage: Stage, stride: int, size: int) -> None:
        super().__init__()
        inside = channels * stage.expand
        squeezed = max(1, int(channels * _SQUEEZE))
        padding = _padding(size, stage.kernel, stride)
        self._expand_conv: nn.Conv2d | None = None
        if stage.expand != 1:
            self._expand_conv = nn.Conv2d(channels, inside, 1, bias=False)
            self._bn0 = nn.BatchNorm2d(inside, eps=_EPS)
        self._depthwise_conv = nn.Conv2d(
            inside, inside, stage.kernel, stride, padding, groups=inside, bias=False
        )
        self._bn1 = nn.BatchNorm2d(inside, eps=_EPS)
        self._se_reduce = nn.Conv2d(inside, squeezed, 1)
        self._se_expand = nn.Conv2d(squeezed, inside, 1)
        self._project_conv = nn.Conv2d(inside, stage.channels, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(stage.channels, eps=_EPS)
        self._has_shortcut = stride == 1 and channels == stage.channels
        self._swish = nn.SiLU()

    def forward(self, inputs: Tensor) -> Tensor:
        x = inputs
        if self._expand_conv is not None:
            x = self._swish(self._bn0(self._expand_conv(x)))
        x = self._swish(self._bn1(self._depthwise_conv(x)))
        squeezed = self._se_reduce(x.mean((2, 3), keepdim=True))
        x = x * torch.sigmoid(self._se_expand(self._swish(squeezed)))
        x = self._bn2(self._project_conv(x))
        return x + inputs if self._has_shortcut else x


class EfficientNet(nn.Module):
    """Images [B,3,H,W] -> pooled features [B,C].

    Args:
        stages: of the blocks.
        stem: channels of the first convolution.
        head: channels of the last convolution; C.
        size: of the square images that the padding is for.
    """

    def __init__(
        self, stages: Sequence[Stage] = B4, stem: int = 48, head: int = 1792, size: int = 380
    ) -> None:
        super().__init__()
        self._conv_stem = nn.Conv2d(3, stem, 3, 2, _padding(size, 3, 2), bias=False)
        self._bn0 = nn.BatchNorm2d(stem, eps=_EPS)
        size = math.ceil(size / 2)
        blocks: list[nn.Module] = []
        channels = stem
        for stage in stages:
            for i in range(stage.repeats):
                stride = 1 if i else stage.stride
                blocks.append(Block(channels, stage, stride, size))
                channels, size = stage.channels, math.ceil(size / stride)
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = nn.Conv2d(channels, head, 1, bias=False)
        self._bn1 = nn.BatchNorm2d(head, eps=_EPS)
        self._swish = nn.SiLU()
        self._avg_pooling = nn.AdaptiveAvgPool2d(1)
        self.out_features = head

    def forward(self, images: Tensor) -> Tensor:
        x = self._swish(self._bn0(self._conv_stem(images)))
        for block in self._blocks:
            x = block(x)
        x = self._swish(self._bn1(self._conv_head(x)))
        features: Tensor = self._avg_pooling(x).flatten(1)
        return features
