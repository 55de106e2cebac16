"""The joint graph equals eager autograd, layer by layer, on any CNN, at any batch size."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
import torchvision
from cam_oracle import METHODS, acts_and_grads, calibrated, combi_cam
from torch import Tensor, nn

from combicam import CamSpec, LoadedModel, TraceError
from combicam.export.trace.probe import LayerInfo
from combicam.export.trace.scores import best_classes
from combicam.export.trace.signature import Signature
from combicam.export.trace.snapshot import snapshot
from combicam.export.trace.trace import JointGraph, trace
from combicam.kernels.principal import EIGEN

SIZE = (64, 96)


def joint_of(model: nn.Module, size: tuple[int, int] = SIZE, **spec: object) -> JointGraph:
    return trace(snapshot(model), CamSpec(**spec), size)  # type: ignore[arg-type]


def top(joint: JointGraph, images: Tensor) -> list[Tensor]:
    return list(joint.module(images, best_classes(len(images), joint.spec.targets)))


def check_against_oracle(model: nn.Module, size: tuple[int, int], layers: str = "blocks") -> None:
    """In float64, where no activation sits on a kink by rounding."""
    model = calibrated(model, size).double()
    joint = joint_of(model, size, layers=layers)
    torch.manual_seed(1)
    for batch in (1, 3):
        images = torch.randn(batch, 3, *size)
        logits, classes, scores, heatmaps, _ = top(joint, images)
        expected = model(images.double())
        torch.testing.assert_close(logits.double(), expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(classes[:, 0], expected.argmax(1))
        torch.testing.assert_close(scores.double(), expected.softmax(1).amax(1)[:, None])
        names = [info.name for info in joint.layers]
        reference = combi_cam(model, names, images.double(), classes[:, 0])
        assert heatmaps.amax() == 1
        assert (heatmaps[:, 0] - reference).abs().max() < 2e-5


@pytest.mark.long
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "squeezenet1_1"])
def test_torchvision_networks(name: str) -> None:
    check_against_oracle(torchvision.models.get_model(name, weights=None, num_classes=12), SIZE)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "alexnet",
        "shufflenet_v2_x0_5",
        "vgg11",
        "efficientnet_b0",
        "mobilenet_v3_small",
        "densenet121",
        "googlenet",
        "regnet_y_400mf",
        "convnext_tiny",
        "resnext50_32x4d",
        "timm:resnet26d",
        "timm:hrnet_w18_small",
        "timm:dla34",
        "timm:ghostnet_100",
        "timm:repvgg_a0",
        "timm:nf_resnet50",
        "timm:res2net50_26w_4s",
        "timm:cspresnet50",
        "timm:xception41",
        "timm:efficientnetv2_rw_t",
        "timm:mobilenetv4_conv_small",
        "timm:legacy_seresnext26_32x4d",
    ],
)
def test_more_networks(name: str) -> None:
    if name.startswith("timm:"):
        import timm

        model = timm.create_model(name.removeprefix("timm:"), num_classes=12)
    else:
        extra = {"init_weights": False} if name == "googlenet" else {}
        model = torchvision.models.get_model(name, weights=None, num_classes=12, **extra)
    check_against_oracle(model, (96, 128))


class Odd(nn.Module):
    """Everything that needs a decomposition of its own, in shapes that do not divide evenly."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)
        self.strided = nn.Conv2d(8, 12, 5, stride=(2, 3), padding=(2, 0), bias=False)
        self.norm = nn.BatchNorm2d(12)
        self.pool = nn.MaxPool2d(3, 2, 1, ceil_mode=True)
        self.grouped = nn.Conv2d(12, 12, 3, padding=4, dilation=2, groups=3)
        self.pad_average = nn.AvgPool2d(3, 2, 1, count_include_pad=False)
        self.cut_average = nn.AvgPool2d(2, ceil_mode=True)
        self.adaptive_average = nn.AdaptiveAvgPool2d((5, 4))
        self.adaptive_max = nn.AdaptiveMaxPool2d((3, 4))
        self.up = nn.ConvTranspose2d(12, 6, 3, stride=2, padding=1, output_padding=1)
        self.wide = nn.Conv2d(6, 6, 1, padding=1)
        self.norm2 = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 9)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.silu(self.first(x))
        x = self.norm(self.strided(x))
        x += 1  # in place, behind a layer
        x = nn.functional.gelu(self.pool(x))
        x = nn.functional.hardswish(self.grouped(x))
        x = self.cut_average(self.pad_average(x))
        x = x + self.adaptive_average(x).mean((2, 3), keepdim=True)
        x = x * self.adaptive_max(x).sigmoid().sum((2, 3), keepdim=True)
        x = nn.functional.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
        x = nn.functional.interpolate(x, size=(9, 11), mode="nearest")
        x = nn.functional.relu6(self.up(x), inplace=True)
        x = self.norm2(nn.functional.leaky_relu(self.wide(x), inplace=True))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


@pytest.mark.parametrize("size", [(61, 87), (64, 64)])
def test_operators_with_decompositions_of_their_own(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model = calibrated(Odd(), size).double()
    names = ("first", "strided", "norm", "pool", "grouped", "cut_average", "up", "wide")
    spec = CamSpec(layers=names, method="elementwise")
    joint = trace(snapshot(model), spec, size, keep_layers=True)
    images = torch.randn(3, 3, *size)
    _, classes, _, _, _, *maps = top(joint, images)
    for name, ours in zip(names, maps, strict=True):
        pair = acts_and_grads(model, name, images.double(), classes[:, 0], "logprob")
        expected = METHODS["elementwise"](*pair)
        assert expected.max() > 0, name
        assert (ours[:, 0] - expected).abs().max() < 1e-5 * expected.max(), name


@pytest.mark.parametrize(
    ("method", "score"),
    [
        (method, score)
        for method in METHODS
        for score in ("logit", "prob", "logprob")
        if score == "logprob" or method not in EIGEN  # traced slowly
    ],
)
def test_methods_and_scores_on_the_trained_network(
    method: str, score: str, demo_model: LoadedModel, postcards: Callable[[int, int], Tensor]
) -> None:
    model = snapshot(demo_model.module).double()
    joint = trace(model, CamSpec(method=method, score=score), (160, 160))
    images = demo_model.preprocess.normalize(postcards(2, 7))
    _, classes, _, heatmaps, _ = top(joint, images)
    names = [info.name for info in joint.layers]
    reference = combi_cam(model, names, images.double(), classes[:, 0], method, score)
    assert (heatmaps[:, 0] - reference).abs().max() < 1e-4


def test_probability_and_its_logarithm_give_one_map(
    demo_model: LoadedModel, postcards: Callable[[int, int], Tensor]
) -> None:
    images = demo_model.preprocess.normalize(postcards(2, 3))
    maps = [
        top(joint_of(demo_model.module, (160, 160), score=s), images)[3]
        for s in ("prob", "logprob")
    ]
    torch.testing.assert_close(*maps, atol=1e-4, rtol=0)


@pytest.mark.long
def test_targets_by_rank_by_class_and_by_region(
    demo_model: LoadedModel, postcards: Callable[[int, int], Tensor]
) -> None:
    images = demo_model.preprocess.normalize(postcards(3, 11))
    spec = CamSpec(targets=2)
    ranked = joint_of(demo_model.module, (160, 160), targets=2)
    _, classes, scores, heatmaps, _ = top(ranked, images)
    given = ranked.module(images, classes.flip(1))
    assert torch.equal(given[1], classes.flip(1))
    torch.testing.assert_close(given[3], heatmaps.flip(1), atol=1e-5, rtol=0)
    regions = trace(snapshot(demo_model.module), spec, (160, 160), target_input="weights")
    one_hot = torch.nn.functional.one_hot(classes, 36).float()
    by_region = regions.module(images, one_hot)
    torch.testing.assert_close(by_region[2], scores)
    torch.testing.assert_close(by_region[3], heatmaps, atol=1e-4, rtol=0)
    assert (by_region[1] == -1).all()


def test_a_batch_gives_what_its_images_give_alone(
    demo_model: LoadedModel, postcards: Callable[[int, int], Tensor]
) -> None:
    joint = joint_of(demo_model.module, (160, 160))
    images = demo_model.preprocess.normalize(postcards(4, 20))
    together = top(joint, images)
    for i in range(4):
        alone = top(joint, images[i : i + 1])
        torch.testing.assert_close(alone[3], together[3][i : i + 1], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)]
)
def test_half_precision(
    dtype: torch.dtype, demo_model: LoadedModel, postcards: Callable[[int, int], Tensor]
) -> None:
    images = demo_model.preprocess.normalize(postcards(4, 30))
    full = top(joint_of(demo_model.module, (160, 160)), images)
    half = top(trace(snapshot(demo_model.module).to(dtype), CamSpec(), (160, 160)), images)
    assert [o.dtype for o in half] == [o.dtype for o in full]
    assert torch.equal(half[1], full[1])
    bound = {torch.bfloat16: 0.05, torch.float16: 0.01}[dtype]
    assert (half[3] - full[3]).abs().mean() < bound


def test_portable_graph_has_standard_operators_alone(demo_model: LoadedModel) -> None:
    joint = joint_of(demo_model.module, (160, 160))
    names = {str(node.target) for node in joint.module.graph.nodes}
    assert "combicam.cam_head.default" in names
    portable = joint.portable()
    assert not any("combicam" in str(node.target) for node in portable.module.graph.nodes)
    images = torch.randn(2, 3, 160, 160)
    for ours, theirs in itertools.zip_longest(top(portable, images), top(joint, images)):
        torch.testing.assert_close(ours, theirs)


class Fixed(nn.Module):
    """Reshapes by the number of images it saw first."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        logits: Tensor = self.head(x.view(int(x.shape[0]), 4, -1).mean(2))
        return logits


def test_refusals() -> None:
    with pytest.raises(TraceError, match="fixes the batch size"):
        joint_of(Fixed(), layers=("conv",))
    model = torchvision.models.resnet18(weights=None, num_classes=3)
    with pytest.raises(TraceError, match="targets <= 3"):
        joint_of(model, targets=4)
    with pytest.raises(TraceError, match=r"one layer weight per layer \(8\)"):
        joint_of(model, layer_weights=(1.0, 2.0))
    with pytest.raises(
        TraceError, match=r"logits \[B,n\], got none: a tensor float32 \[1, 512, 2, 3\]"
    ):
        joint_of(nn.Sequential(*list(model.children())[:-2]))
    with pytest.raises(TraceError, match="input_size"):
        joint_of(torchvision.models.alexnet(weights=None), (8, 8))


def test_a_certain_network_is_still_explained(demo_model: LoadedModel) -> None:
    """p rounds to 1 in float32, so that the gradient of log softmax would lose the class itself."""
    model = snapshot(demo_model.module)
    model.head.weight.data = model.head.weight.data * 60
    images = torch.randn(5, 3, 160, 160)
    certain = top(trace(model, CamSpec(), (160, 160)), images)
    assert (certain[2] == 1).all()
    exact = top(trace(model.double(), CamSpec(), (160, 160)), images)
    assert exact[3].amax() == 1
    errors = (certain[3] - exact[3]).abs().amax((1, 2, 3))
    assert errors.median() < 1e-3  # one image in thirty has a ReLU at zero to rounding


def test_the_region_of_all_classes_is_flat(demo_model: LoadedModel) -> None:
    joint = trace(snapshot(demo_model.module), CamSpec(), (160, 160), target_input="weights")
    _, _, scores, heatmaps, ranges = joint.module(torch.randn(2, 3, 160, 160), torch.ones(2, 1, 36))
    torch.testing.assert_close(scores, torch.ones(2, 1))
    assert heatmaps.isfinite().all() and ranges.isfinite().all() and ranges.abs().max() < 1e-20


@pytest.mark.parametrize("word", ["weight", "class", "", "Classes", None])
def test_words_that_say_nothing_of_targets(word: str) -> None:
    model = snapshot(nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    expected = rf"target_input in \['none', 'classes', 'weights'\], got {word!r}"
    with pytest.raises(ValueError, match=expected):
        trace(model, CamSpec(layers=("0",)), (8, 8), target_input=word)
    with pytest.raises(ValueError, match=expected):
        Signature((8, 8), 2, target_input=word)


def test_words_that_say_nothing_of_a_tensor() -> None:
    with pytest.raises(ValueError, match=r"dtype in .*'float16'.*, got 'half'"):
        Signature((8, 8), 2, dtype="half")
    with pytest.raises(ValueError, match=r"layer '4\.1': expected layout in .*got 'channels-last'"):
        LayerInfo("4.1", "Block", 8, 4, 4, "channels-last")
