"""Define PlanetNet, a small residual CNN that predicts the cell of a postcard."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from .planet import CELLS

INPUT_SIZE = (160, 160)  # H, W; postcards are squashed to it with Pillow's bilinear filter
MEAN = (0.565, 0.615, 0.570)  # of RGB in [0, 1], over postcards
STD = (0.145, 0.130, 0.190)
WEIGHTS = Path(__file__).with_name("planet.safetensors")

_WIDTHS = (8, 24, 48, 96)
_BLOCKS = (2, 2, 2, 2)


class Block(nn.Module):
    """A bottleneck: y = relu(x + W₃ relu(W₂ relu(W₁ x))), W₂ 3x3 on half the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = nn.Conv2d(channels, half, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = nn.Conv2d(half, half, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """[B,C,h,w] to [B,C,h,w]."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        out: Tensor = self.relu(x + self.bn3(self.conv3(y)))
        return out


class Down(nn.Module):
    """Halves the resolution: y = relu(bn(conv3x3, stride 2))."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, 3, stride=2, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(out)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """[B,C,h,w] to [B,out,h/2,w/2]."""
        out: Tensor = self.relu(self.bn(self.conv(x)))
        return out


class PlanetNet(nn.Module):
    """Normalised RGB [B,3,160,160] to logits [B,classes].

    Four stages of residual blocks at 80, 40, 20 and 10 pixels, global average pooling, one linear
    layer. Stages are `nn.Sequential`s of blocks; what changes the resolution stands between them.
    """

    def __init__(self, classes: int = len(CELLS)) -> None:
        super().__init__()
        if classes < 1:
            raise ValueError(
                f"PlanetNet: expected classes >= 1, got {classes}; the planet has {len(CELLS)}"
            )
        self.stem = Down(3, _WIDTHS[0])
        self.stage1 = self._stage(0)
        self.down2 = Down(_WIDTHS[0], _WIDTHS[1])
        self.stage2 = self._stage(1)
        self.down3 = Down(_WIDTHS[1], _WIDTHS[2])
        self.stage3 = self._stage(2)
        self.down4 = Down(_WIDTHS[2], _WIDTHS[3])
        self.stage4 = self._stage(3)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(_WIDTHS[3], classes)

    @staticmethod
    def _stage(index: int) -> nn.Sequential:
        return nn.Sequential(*(Block(_WIDTHS[index]) for _ in range(_BLOCKS[index])))

    def features(self, x: Tensor) -> Tensor:
        """The last feature maps [B,96,h,w], a sixteenth of the input's height and width."""
        x = self.stage1(self.stem(x))
        x = self.stage2(self.down2(x))
        x = self.stage3(self.down3(x))
        out: Tensor = self.stage4(self.down4(x))
        return out

    def forward(self, x: Tensor) -> Tensor:
        """[B,3,H,W] to [B,classes]."""
        out: Tensor = self.head(self.pool(self.features(x)).flatten(1))
        return out


def build() -> PlanetNet:
    """The trained PlanetNet, on the CPU in eval mode."""
    net = PlanetNet()
    net.load_state_dict(load_file(WEIGHTS))
    return net.eval().requires_grad_(True)


def multiply_adds(net: PlanetNet) -> int:
    """Multiply-adds of one forward pass over one postcard (convolutions and the linear layer)."""
    total = 0

    def count(layer: nn.Conv2d | nn.Linear, _: tuple[Tensor, ...], out: Tensor) -> None:
        nonlocal total
        total += layer.weight[0].numel() * out[0].numel()

    hooks = [
        m.register_forward_hook(count)
        for m in net.modules()
        if isinstance(m, nn.Conv2d | nn.Linear)
    ]
    with torch.no_grad():
        net(torch.zeros(1, 3, *INPUT_SIZE))
    for hook in hooks:
        hook.remove()
    return total
