"""Convolutions with bias, residual and activation as one operator; cuDNN's are stood in for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_leaves

from combicam.engine.explain import backends
from combicam.export.passes.passes import for_eager_cuda
from combicam.export.spec import CamSpec
from combicam.export.trace.snapshot import snapshot
from combicam.export.trace.trace import JointGraph, trace
from tests.cam_oracle import acts_and_grads, calibrated, gradcam

aten = torch.ops.aten
X = torch.randn(2, 16, 6, 5, generator=torch.Generator().manual_seed(0)).bfloat16()


class StandIn(fx.Interpreter):
    """Runs a graph on the CPU, for which cuDNN's operators have no kernels."""

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target is aten.cudnn_convolution_relu.default:
            x, weight, *rest = args
            return _convolution(x, weight, *rest).relu().to(x.dtype)
        if target is aten.cudnn_convolution_add_relu.default:
            x, weight, z, alpha, *rest = args
            result = _convolution(x, weight, *rest)
            assert z.shape == result.shape
            return (result + alpha * z).relu().to(x.dtype)
        return super().call_function(target, args, kwargs)


def _convolution(x: Tensor, weight: Tensor, bias: Tensor, *rest: Any) -> Tensor:
    """In float32, rounded by the caller: once, as cuDNN does."""
    return torch.conv2d(x.float(), weight.float(), bias.float(), *rest)


def counted(module: fx.GraphModule) -> Counter[str]:
    names = Counter[str]()
    for node in module.graph.nodes:
        name = str(node.target).removesuffix(".default")
        if node.target is aten.convolution.default and node.args[2] is not None:
            name = "convolution with bias"
        names[name] += node.op == "call_function"
    return names


def fused(module: fx.GraphModule) -> fx.GraphModule:
    """Fused by the pass; the graph itself, and what is fused already, stay as they are."""
    before = str(module.graph)
    result = for_eager_cuda(module)
    assert str(module.graph) == before
    assert str(for_eager_cuda(result).graph) == str(result.graph)
    return result


def conv(into: int = 16, of: int = 16, kernel: int = 3, **options: Any) -> nn.Conv2d:
    torch.manual_seed(into + kernel)
    return nn.Conv2d(of, into, kernel, padding=kernel // 2, **options).bfloat16()


A, B = conv().requires_grad_(False), conv(kernel=1).requires_grad_(False)
ODD, GROUPED, PLAIN = (
    c.requires_grad_(False) for c in (conv(12), conv(groups=16), conv(bias=False))
)
POOLED = nn.AdaptiveAvgPool2d(1)

BOTH = {"aten.cudnn_convolution_relu": 1}
ADDED = {"aten.cudnn_convolution_add_relu": 1}
IN_PLACE = {"combicam.bias_act_": 1}
PAIR = {"combicam.bias_act_pair_": 1}
CASES: dict[str, tuple[Callable[[Tensor], Any], dict[str, int]]] = {
    "relu": (lambda x: A(x).relu(), {**BOTH, "aten.convolution": 0}),
    "residual": (lambda x: (A(x) + x).relu(), ADDED),
    "residual in front": (lambda x: (x.relu() + A(x)).relu(), ADDED),
    "two convolutions": (lambda x: (A(x) + B(x)).relu(), {**ADDED, "aten.convolution": 1}),
    "the other without bias": (lambda x: (PLAIN(x) + B(x)).relu(), ADDED),
    "two convolutions, one read twice": (
        lambda x: ((A(x) + (b := B(x))).relu(), b * 2),
        {**ADDED, **IN_PLACE},
    ),
    "read before the activation": (lambda x: ((y := A(x)).relu(), y * 2), PAIR),
    "returned": (lambda x: ((y := A(x)).relu(), y), PAIR),
    "read before the sum": (lambda x: (((y := A(x)) + x).relu(), y * 2), IN_PLACE),
    "sum read twice": (lambda x: ((y := A(x) + x).relu(), y * 2), IN_PLACE),
    "silu of a sum": (lambda x: nn.functional.silu(A(x) + x), IN_PLACE),
    "silu": (lambda x: nn.functional.silu(GROUPED(x)), IN_PLACE),
    "silu twice": (lambda x: [(y := A(x)), nn.functional.silu(y), y.relu()], PAIR),
    "hardswish": (lambda x: nn.functional.hardswish(A(x)), IN_PLACE),
    "relu6": (lambda x: nn.functional.relu6(A(x)), IN_PLACE),
    "hardtanh": (lambda x: nn.functional.hardtanh(A(x)), {**IN_PLACE, "aten.hardtanh": 1}),
    "groups": (lambda x: GROUPED(x).relu(), IN_PLACE),
    "channels that fill no vectors": (lambda x: ODD(x).relu(), IN_PLACE),
    "float16": (lambda x: A.half()(x.half()).relu(), IN_PLACE),
    "two readers": (lambda x: B(y := A(x)) + y, {"combicam.bias_act_": 2}),
    "z is itself": (lambda x: ((y := A(x)) + y).relu(), {**IN_PLACE, "aten.relu": 1}),
    "alpha": (lambda x: torch.add(A(x), x, alpha=2).relu(), {**IN_PLACE, "aten.add.Tensor": 1}),
    "alpha of the convolution": (lambda x: torch.add(x, A(x), alpha=2).relu(), IN_PLACE),
    "z of another shape": (
        lambda x: (A(x) + x.mean((2, 3), True)).relu(),
        {**IN_PLACE, "aten.add.Tensor": 1},
    ),
    "z of another dtype": (lambda x: (A(x) + x.float()).relu(), IN_PLACE),
    "z is a number": (lambda x: (A(x) + 1.5).relu(), {**IN_PLACE, "aten.relu": 1}),
    "no bias": (lambda x: PLAIN(x).relu(), {"aten.convolution": 1, "aten.relu": 1}),
    "float32": (lambda x: A.float()(x.float()).relu(), {"convolution with bias": 1}),
    "one pixel": (lambda x: B(POOLED(x)).relu(), {"convolution with bias": 1}),
    "transposed": (
        lambda x: torch.conv_transpose2d(x, A.weight, A.bias).relu(),
        {"convolution with bias": 1},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_pass(name: str) -> None:
    function, expected = CASES[name]
    A.bfloat16()
    module = make_fx(function)(X)
    module.graph.eliminate_dead_code()
    result = fused(module)
    found = counted(result)
    kinds = {*BOTH, *ADDED, *IN_PLACE, *PAIR, "convolution with bias"}
    assert {k: found[k] for k in {*kinds, *expected}} == {**dict.fromkeys(kinds, 0), **expected}
    x = torch.randn(3, 16, 6, 5).bfloat16()  # other images than those traced
    for a, b in zip(tree_leaves(function(x)), tree_leaves(StandIn(result).run(x)), strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, atol=3e-2, rtol=2e-2)


class Residual(nn.Module):
    def __init__(self, channels: int, into: int, stride: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, into, 3, stride, 1, bias=False)
        self.first_norm, self.second_norm = nn.BatchNorm2d(into), nn.BatchNorm2d(into)
        self.second = nn.Conv2d(into, into, 3, 1, 1, bias=False)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, into, 1, stride, bias=False), nn.BatchNorm2d(into)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.first_norm(self.first(x)).relu()
        return (self.second_norm(self.second(y)) + self.shortcut(x)).relu()


class Inverted(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        wide = 2 * channels
        self.expand = nn.Sequential(
            nn.Conv2d(channels, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.SiLU()
        )
        self.spread = nn.Sequential(
            nn.Conv2d(wide, wide, 3, 1, 1, groups=wide, bias=False),
            nn.BatchNorm2d(wide),
            nn.SiLU(),
        )
        self.gate = torchvision.ops.SqueezeExcitation(wide, 4, nn.SiLU)
        self.project = nn.Sequential(
            nn.Conv2d(wide, channels, 1, bias=False), nn.BatchNorm2d(channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.project(self.gate(self.spread(self.expand(x)))) + x


def head(channels: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 6)]


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...], dict[str, int]]] = {
    "residual": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 16, 3, 1, 1), Residual(16, 16), Residual(16, 32, 2), *head(32)
        ),
        ("1", "2"),
        {**ADDED, "aten.cudnn_convolution_add_relu": 2, "aten.cudnn_convolution_relu": 2},
    ),
    "inverted": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 16, 3, 1, 1), nn.SiLU(), Inverted(16), Inverted(16), *head(16)
        ),
        ("2", "3"),
        {"combicam.bias_act_pair_": 2, "combicam.bias_act_": 5},
    ),
    # The convolutions are target layers themselves: what ReLU reads is read by the head, too.
    "targets": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 16, 3, 1, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, 1, 1), nn.ReLU(), *head(16)
        ),
        ("0", "2"),
        {"combicam.bias_act_pair_": 2},
    ),
}


def joint_of(
    model: nn.Module, layers: tuple[str, ...], dtype: torch.dtype = torch.bfloat16
) -> JointGraph:
    frozen = snapshot(model).to(dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return trace(frozen, CamSpec(layers=layers, score="logit"), (16, 12), keep_layers=True)


@pytest.mark.parametrize("name", NETWORKS)
def test_maps_are_as_near_to_autograd_in_float64_as_without_the_pass(name: str) -> None:
    make, layers, expected = NETWORKS[name]
    torch.manual_seed(0)
    model = calibrated(make(), (16, 12))
    joint = joint_of(model, layers)
    result = fused(joint.module)
    found = counted(result)
    assert found["convolution with bias"] == (4 if name == "inverted" else 0)  # gates
    assert {kind: found[kind] for kind in expected} == expected
    images = torch.randn(3, 3, 16, 12).bfloat16()
    targets = torch.tensor([[1], [4], [0]])
    plain, again = joint.module(images, targets), StandIn(result).run(images, targets)
    exact = model.double()
    wholes = [exact(images.double()).detach()]
    for layer in layers:
        acts, grads = acts_and_grads(exact, layer, images.double(), targets[:, 0], "logit")
        wholes.append(gradcam(acts, grads).detach())
    for whole, a, b in zip(wholes, (plain[0], *plain[5:]), (again[0], *again[5:]), strict=True):
        size = whole.abs().max()
        without, with_it = (
            float((v.double().view(whole.shape) - whole).abs().max() / size) for v in (a, b)
        )
        assert with_it < max(2 * without, 0.01) and with_it < 0.06, (name, without, with_it)


@pytest.mark.parametrize(
    ("name", "layers", "expected"),
    [
        (
            "resnet50",
            "stages",
            {
                "aten.cudnn_convolution_relu": 32,
                "aten.cudnn_convolution_add_relu": 16,
                "combicam.bias_act_": 1,  # the stem, of three channels
                "convolution with bias": 0,
                "aten.relu": 0,
            },
        ),
        pytest.param(
            "efficientnet_b4",
            "blocks",
            {
                "combicam.bias_act_pair_": 62,
                "combicam.bias_act_": 34,  # 25 with a residual
                "convolution with bias": 64,  # gates, of one pixel
                "aten.silu": 32,
            },
            marks=pytest.mark.slow,
        ),
    ],
)
def test_convolutions_of_published_networks(
    name: str, layers: str, expected: dict[str, int]
) -> None:
    model = torchvision.models.get_model(name, weights=None).eval().bfloat16()
    joint = trace(snapshot(model), CamSpec(layers=layers), (64, 64))
    found = counted(fused(joint.module))
    assert {kind: found[kind] for kind in expected} == expected


@pytest.mark.parametrize(("dtype", "changes"), [(torch.float16, True), (torch.float32, False)])
def test_eager_torch_runs_the_fused_graph(
    dtype: torch.dtype, changes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on CUDA; in float16 without cuDNN's operators, so the CPU can."""
    make, layers, _ = NETWORKS["residual"]
    joint = joint_of(calibrated(make(), (16, 12)), layers, dtype)
    given = [torch.randn(3, 3, 16, 12), torch.tensor([[1], [4], [0]])]
    cpu = torch.device("cpu")
    expected = backends.eager_backend(joint, cpu)(given)
    monkeypatch.setattr(backends, "has_fused_convolutions", lambda device: True)
    found = backends.eager_backend(joint, cpu)(given)
    torch.testing.assert_close(found[0], expected[0], atol=1e-2, rtol=1e-2)
    assert torch.equal(found[0], expected[0]) is not changes  # a sum is rounded once, not twice


def test_other_devices_have_no_fused_convolutions() -> None:
    assert not backends.has_fused_convolutions(torch.device("cpu"))
    assert not backends.has_fused_convolutions(torch.device("mps"))
