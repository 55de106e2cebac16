"""Networks whose weights lie channels-last, as on a GPU: the same numbers, in their layout."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from cam_oracle import calibrated
from torch import fx

from combicam import Explainer
from combicam.export.spec import CamSpec
from combicam.export.trace.snapshot import memory_format, snapshot
from combicam.export.trace.trace import trace


@pytest.mark.long
@pytest.mark.parametrize(
    "name", ["resnet18", pytest.param("shufflenet_v2_x0_5", marks=pytest.mark.slow)]
)
def test_channels_last_gives_the_same(name: str) -> None:
    # float64: in float32 a ReLU at zero may fall to either side of a rounding.
    model = calibrated(torchvision.models.get_model(name, weights=None), (64, 64)).double()
    assert memory_format(model) == torch.contiguous_format
    images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    expected = Explainer(model, (64, 64), layers="stages")(images)
    last = model.to(memory_format=torch.channels_last)
    assert memory_format(last) == torch.channels_last
    explainer = Explainer(last, (64, 64), layers="stages")
    for given in (images, images.to(memory_format=torch.channels_last), images[:1]):
        found = explainer(given)
        torch.testing.assert_close(found.logits, expected.logits[: len(given)])
        assert (found.heatmaps - expected.heatmaps[: len(given)]).abs().max() < 1e-5
    if name != "resnet18":
        return  # shuffling channels lays them out anew
    nodes = explainer.session.joint(explainer.session.top).module.graph.nodes  # type: ignore[attr-defined]
    head = next(n for n in nodes if "cam_head" in str(n.target))
    for act in head.args[0]:
        assert act.meta["val"].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.long
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_convolutions_of_a_channels_last_graph_read_and_write_that(name: str) -> None:
    """A weight or a gradient in another layout is copied in every call on a GPU."""
    model = snapshot(calibrated(torchvision.models.get_model(name, weights=None), (64, 64)))
    graph = trace(model.to(memory_format=torch.channels_last), CamSpec(layers="blocks"), (64, 64))
    others: list[str] = []

    class Layouts(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            if n.target is torch.ops.aten.convolution.default:
                x, weight, *_ = n.args
                for tensor in (self.env[x], self.env[weight], result):  # type: ignore[index]
                    if not tensor.is_contiguous(memory_format=torch.channels_last):
                        others.append(f"{n.name} {tuple(tensor.shape)} {tensor.stride()}")
            return result

    images = torch.randn(2, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        Layouts(graph.module).run(images, torch.full((2, 1), -1))
    assert not others
