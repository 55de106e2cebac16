"""Which layers the rules select, and what is said about the others."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
import torchvision
from cam_oracle import unit
from torch import Tensor, nn

from combicam import CamSpec, LayerError
from combicam.export.trace.layers import select_layers
from combicam.export.trace.probe import LayerInfo, Probe, probe
from combicam.export.trace.snapshot import snapshot
from combicam.export.trace.trace import trace


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
    model, found = probed(nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(288, 5)))
    with pytest.raises(LayerError, match="combicam layers"):
        select_layers(model, found, "blocks")


class Swish(nn.Module):
    """An activation of nobody's list, made of modules."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)


class Functional(nn.Module):
    """One convolution, its norm, and an activation that is no module."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c, 8, 3)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)))


ACTIVATIONS = [Swish, nn.Hardsigmoid, nn.Softsign, nn.RReLU, nn.LogSigmoid, nn.Tanhshrink]
ACTIVATIONS += [nn.Softshrink, nn.ReLU, nn.PReLU, nn.GELU, nn.Hardswish, nn.CELU]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_chains_with_any_activation(activation: type[nn.Module]) -> None:
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(8, 8, 3), activation(), nn.Dropout(), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), activation(), nn.AdaptiveAvgPool2d(1)]
    model, found = probed(nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, 5)))
    assert [i.name for i in select_layers(model, found, "blocks")] == ["2", "5", "10"]
    assert [i.name for i in select_layers(model, found, "last")] == ["10"]


def test_chains_whose_activations_are_no_modules() -> None:
    tail = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)]
    model, found = probed(nn.Sequential(Functional(3), nn.Identity(), Functional(8), *tail))
    assert [i.name for i in select_layers(model, found, "blocks")] == ["0", "2"]
    linear = [nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), *tail]
    model, found = probed(nn.Sequential(*linear))
    assert [i.name for i in select_layers(model, found, "blocks")] == ["0", "2"]


class Siamese(nn.Module):
    """Explains both of an image's halves by one backbone, with one activation for everything."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.again = nn.Conv2d(6, 6, 3, padding=1)
        self.act = nn.Tanh()
        self.head = nn.Linear(12, 5)

    def half(self, x: Tensor) -> Tensor:
        x = self.act(self.first(x))
        for _ in range(2):
            x = self.act(self.again(x))
        return x.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        twins = [self.half(x), self.half(x.flip(-1)[..., ::2])]
        logits: Tensor = self.head(torch.cat(twins, 1))
        return logits


@pytest.mark.parametrize("layers", ["blocks", ("act@2", "again", "first@2")])
def test_every_call_of_a_module_is_a_layer(layers: object) -> None:
    model = Siamese().double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        joint = trace(snapshot(model), CamSpec(layers=layers, targets=2), (24, 32))  # type: ignore[arg-type]
    names = [info.name for info in joint.layers]
    assert names == (
        ["act", "act@2", "act@3", "act@4", "act@5", "act@6"]
        if layers == "blocks"
        else ["again", "act@2", "first@2"]
    )
    for batch in (1, 3):
        images = torch.randn(batch, 3, 24, 32)
        classes = torch.randint(0, 5, (batch, 2))
        found = joint.module(images, classes)[3]
        for k in range(2):
            expected = _by_hand(model, names, images.double(), classes[:, k])
            assert (found[:, k] - expected).abs().max() < 2e-5 and expected.max() == 1


def _by_hand(model: nn.Module, names: list[str], images: Tensor, classes: Tensor) -> Tensor:
    """Grad-CAM of every named call, float64."""
    calls: dict[str, list[Tensor]] = {}
    for name, module in model.named_children():
        calls[name] = []
        module.register_forward_hook(lambda _m, _a, out, kept=calls[name]: kept.append(out))
    logits = model(images)
    for module in model.children():
        module._forward_hooks.clear()
    y = logits.log_softmax(1).gather(1, classes[:, None]).sum()
    total = torch.zeros(())
    for name in names:
        module_name, _, call = name.partition("@")
        act = calls[module_name][int(call or 1) - 1]
        (grad,) = torch.autograd.grad(y, act, retain_graph=True)
        cam = (grad.mean((2, 3), keepdim=True) * act.detach()).sum(1, keepdim=True).relu()
        total = total + F.interpolate(cam, (24, 32), mode="bilinear", align_corners=True)
    return unit(total[:, 0])


class Recurrent(nn.Module):
    """One residual block, applied four times."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.block = Residual()
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(4):
            x = self.block(x)
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.body(x))


def test_a_block_that_is_applied_again() -> None:
    model, found = probed(Recurrent())
    names = ["block", "block@2", "block@3", "block@4"]
    assert [i.name for i in select_layers(model, found, "blocks")] == names
    assert [i.name for i in select_layers(model, found, "last")] == ["block@4"]


def test_a_name_of_several_calls_says_so() -> None:
    model, found = probed(Siamese())
    with pytest.warns(UserWarning, match="'act' is called 6 times, .* act@2"):
        assert [i.name for i in select_layers(model, found, ("act",))] == ["act"]


class Cut(nn.Module):
    """No gradient passes from the backbone to the head."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
        self.neck = nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4, 5)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "detach":
            x = self.backbone(x).detach()
        else:
            with torch.no_grad():
                x = self.backbone(x)
        logits: Tensor = self.head(self.neck(x).mean((2, 3)))
        return logits


@pytest.mark.parametrize(
    ("how", "words"),
    [("detach", "end at module 'neck', behind a detach"), ("no_grad", "inside torch.no_grad")],
)
def test_where_gradients_end(how: str, words: str) -> None:
    model, found = probed(Cut(how))
    with pytest.raises(LayerError, match=words):
        select_layers(model, found, ("backbone.1",))
