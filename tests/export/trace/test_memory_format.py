"""Networks whose weights lie channels-last, as on a GPU: the same numbers, in their layout."""

from __future__ import annotations

import pytest
import torch
import torchvision
from cam_oracle import calibrated

from combicam import Explainer
from combicam.export.trace.snapshot import memory_format


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
