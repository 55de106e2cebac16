"""One backward of B K cotangents against one backward per target."""

from __future__ import annotations

import pytest
import torch
import torchvision
from cam_oracle import calibrated
from torch import nn

from combicam.export.spec import CamSpec
from combicam.export.trace.batch_targets import HARVEST, SEED
from combicam.export.trace.scores import best_classes
from combicam.export.trace.snapshot import snapshot
from combicam.export.trace.trace import trace

SIZE = (48, 40)


def convolutions(model: nn.Module, targets: int, batched: bool) -> int:
    joint = trace(model, CamSpec(layers=("0",), targets=targets), SIZE, batched=batched)
    return sum("convolution" in str(node.target) for node in joint.module.graph.nodes)


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "channels_last"),
    [("resnet18", True), pytest.param("shufflenet_v2_x0_5", False, marks=pytest.mark.slow)],
)
def test_equals_a_backward_per_target(name: str, channels_last: bool) -> None:
    model = snapshot(calibrated(torchvision.models.get_model(name, weights=None), SIZE).double())
    if channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    spec = CamSpec(layers="stages", targets=3)
    each = trace(model, spec, SIZE, batched=False, keep_layers=True)
    together = trace(model, spec, SIZE, keep_layers=True)
    marks = {SEED, HARVEST}
    assert marks.isdisjoint(node.target for node in together.module.graph.nodes)
    for batch in (1, 2, 5):  # traced with another
        images = torch.randn(batch, 3, *SIZE, generator=torch.Generator().manual_seed(batch))
        classes = torch.randint(-1, 1000, (batch, 3))
        expected = each.module(images, classes)
        for a, b in zip(together.module(images, classes), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)  # the head is float32
        assert not torch.equal(expected[3][:, 0], expected[3][:, 1])


@pytest.mark.long
def test_the_graph_does_not_grow_with_the_targets() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Conv2d(4, 4, 3), nn.Tanh(), nn.Flatten()]
    model = snapshot(nn.Sequential(*layers, nn.Linear(4 * 44 * 36, 9)))
    assert convolutions(model, 8, True) == convolutions(model, 2, True)
    assert convolutions(model, 3, False) > convolutions(model, 2, False)


class BatchSecond(nn.Module):
    """Keeps its batch in the second dimension for a while, as some sequence models do."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.mix = nn.Linear(4, 4)
        self.head = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = torch.tanh(self.stem(x)).flatten(2).permute(2, 0, 1)  # [h w,B,C]
        tokens = torch.tanh(self.mix(tokens)) * tokens
        return self.head(tokens.mean(0))


def test_a_batch_elsewhere_takes_a_backward_per_target() -> None:
    torch.manual_seed(0)
    model = snapshot(BatchSecond().double())
    spec = CamSpec(layers=("stem",), targets=2)
    images = torch.randn(3, 3, *SIZE)
    found = trace(model, spec, SIZE).module(images, best_classes(3, 2))
    expected = trace(model, spec, SIZE, batched=False).module(images, best_classes(3, 2))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
