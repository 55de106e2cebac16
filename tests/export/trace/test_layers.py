"""Which layers the rules select, and what is said about the others."""

from __future__ import annotations

import pytest
import torchvision
from torch import Tensor, nn

from combicam import LayerError
from combicam.export.trace.layers import select_layers
from combicam.export.trace.probe import LayerInfo, Probe, probe
from combicam.export.trace.snapshot import snapshot


def probed(model: nn.Module, size: tuple[int, int] = (64, 96)) -> tuple[nn.Module, Probe]:
    model = snapshot(model)
    return model, probe(model, size)


class Branchy(nn.Module):
    """A network with a branch that leads nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.aside = nn.Conv2d(4, 4, 1)
        self.unused = nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        self.aside(x)
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


@pytest.mark.parametrize(
    ("name", "blocks", "stages"),
    [
        ("resnet50", 16, ["layer1.2", "layer2.3", "layer3.5", "layer4.2"]),
        ("efficientnet_b4", 32, ["features.1.1", "features.2.3", "features.3.3", "features.5.5"]),
        ("densenet121", 58, ["features.denseblock1.denselayer6"]),
        ("googlenet", 9, ["inception3b", "inception4e", "inception5b"]),
        ("convnext_tiny", 18, ["features.1.2", "features.3.2", "features.5.8", "features.7.2"]),
        ("mobilenet_v2", 17, ["features.1", "features.3", "features.6", "features.13"]),
        ("vgg11", 8, ["features.1", "features.4", "features.9", "features.14", "features.19"]),
        ("alexnet", 5, ["features.1", "features.4"]),
    ],
)
def test_blocks_and_stages(name: str, blocks: int, stages: list[str]) -> None:
    extra = {"init_weights": False} if name == "googlenet" else {}
    model, found = probed(torchvision.models.get_model(name, weights=None, **extra), (128, 128))
    selected = select_layers(model, found, "blocks")
    assert len(selected) == blocks
    ends = select_layers(model, found, "stages")
    assert [info.name for info in ends][: len(stages)] == stages
    assert len({(i.height, i.width) for i in ends}) == len(ends)
    assert select_layers(model, found, "last") == selected[-1:]


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("timm:convnext_atto", 12),
        ("timm:regnety_002", 13),
        ("timm:dla34", 12),
        ("timm:repvgg_a0", 21),
    ],
)
def test_blocks_of_timm(name: str, blocks: int) -> None:
    import timm

    model, found = probed(timm.create_model(name.removeprefix("timm:")))
    assert len(select_layers(model, found, "blocks")) == blocks


def test_names_and_globs_come_in_order_of_execution() -> None:
    model, found = probed(torchvision.models.resnet18(weights=None))
    selected = select_layers(model, found, ("layer4.1", "layer[12].0", "maxpool"))
    assert [i.name for i in selected] == ["maxpool", "layer1.0", "layer2.0", "layer4.1"]
    assert selected[-1] == LayerInfo("layer4.1", "BasicBlock", 512, 2, 3)


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        ("aside", "does not depend"),
        ("unused", "not called"),
        ("head", r"4-D tensor .* got a tensor of shape \(1, 5\)"),
        ("stm", "no module has that name; near misses: stem"),
        ("layer9.*", "no module has that name"),
    ],
)
def test_layers_that_cannot_be_explained(layer: str, words: str) -> None:
    model, found = probed(Branchy())
    with pytest.raises(LayerError, match=words) as error:
        select_layers(model, found, (layer,))
    assert layer in str(error.value) and "stem" in str(error.value)


def test_a_model_without_blocks_says_so() -> None:
    model, found = probed(Branchy())
    with pytest.raises(LayerError, match="combicam layers"):
        select_layers(model, found, "blocks")
