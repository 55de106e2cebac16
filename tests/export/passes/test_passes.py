"""Each pass: what it removes, what it leaves, and that the numbers stay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

from combicam import Explainer
from combicam.engine.explain.sessions import ModelSession
from combicam.export.passes.batch_norm_folding import BatchNormFolding
from combicam.export.passes.common_subexpression_elimination import CommonSubexpressionElimination
from combicam.export.passes.constant_folding import ConstantFolding
from combicam.export.passes.identity_elimination import IdentityElimination
from combicam.export.passes.operator_splitting import splits
from combicam.export.passes.padding_folding import PaddingFolding
from combicam.export.passes.passes import clean
from combicam.export.passes.scale_folding import ScaleFolding
from combicam.export.trace.decompositions import decompositions
from tests.cam_oracle import acts_and_grads

aten = torch.ops.aten
X = torch.randn(2, 6, 9, 9, generator=torch.Generator().manual_seed(0))


def graph_of(function: Callable[[Tensor], Tensor]) -> fx.GraphModule:
    module = make_fx(function, decomposition_table={**decompositions(), **splits()})(X)
    module.graph.eliminate_dead_code()
    return module


def counted(module: fx.GraphModule) -> Counter[str]:
    return Counter(str(n.target) for n in module.graph.nodes if n.op == "call_function")


def run(make: type, module: fx.GraphModule) -> tuple[bool, Counter[str]]:
    """Run a pass twice: numbers stay, and the second time nothing is left to do."""
    expected = module(X)
    result = make()(module)
    result.graph_module.recompile()
    torch.testing.assert_close(result.graph_module(X), expected, atol=1e-5, rtol=1e-4)
    assert not make()(result.graph_module).modified
    return result.modified, counted(result.graph_module)


def test_identity_elimination() -> None:
    def aliases(x: Tensor) -> Tensor:
        y = x.clone().detach().expand(2, 6, 9, 9).view(2, 6, 9, 9)
        return aten.copy(torch.zeros_like(x), y.relu())

    modified, left = run(IdentityElimination, graph_of(aliases))
    assert modified and left["aten.relu.default"] == 1
    assert not {"aten.clone.default", "aten.detach.default", "aten.view.default"} & set(left)
    assert "aten.copy.default" not in left


def test_identity_elimination_keeps_what_changes_shape_or_layout() -> None:
    def changes(x: Tensor) -> Tensor:
        last = x.clone(memory_format=torch.channels_last)
        return last[:, :1].expand(2, 6, 9, 9) + x.reshape(2, 54, 9).view(2, 6, 9, 9)

    modified, left = run(IdentityElimination, graph_of(changes))
    assert not modified and left["aten.expand.default"] == 1 and left["aten.clone.default"] == 1


def test_constant_folding() -> None:
    weight = nn.Parameter(torch.randn(6, 6, 3, 3), requires_grad=False)

    def flipped(x: Tensor) -> Tensor:
        kernel = weight.flip([2, 3]).transpose(0, 1) * 2.0
        return nn.functional.conv2d(x, kernel, padding=1)

    modified, left = run(ConstantFolding, graph_of(flipped))
    assert modified and set(left) == {"aten.convolution.default"}


def test_constant_folding_leaves_broadcasts_and_randomness() -> None:
    seed = nn.Parameter(torch.randn(1), requires_grad=False)

    def broadcast(x: Tensor) -> Tensor:
        return (seed.repeat(1 << 17).sum() + torch.rand(3).sum() * 0) * x

    module = graph_of(broadcast)
    ConstantFolding()(module)
    assert {"aten.repeat.default", "aten.rand.default"} <= set(counted(module))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("groups", [1, 3])
def test_batch_norm_folding(bias: bool, groups: int) -> None:
    model = nn.Sequential(
        nn.Conv2d(6, 12, 3, groups=groups, bias=bias), nn.BatchNorm2d(12), nn.ReLU()
    )
    for _ in range(3):
        model(torch.randn(4, 6, 9, 9) * 3 + 1)
    model.eval().requires_grad_(False)
    modified, left = run(BatchNormFolding, graph_of(model))
    assert modified and set(left) == {"aten.convolution.default", "aten.relu.default"}


def test_batch_norm_folding_without_a_convolution_or_with_other_readers() -> None:
    norm = nn.BatchNorm2d(6).eval().requires_grad_(False)
    norm.running_mean = torch.randn(6)
    modified, left = run(BatchNormFolding, graph_of(lambda x: norm(x.relu())))
    assert modified and left["aten.mul.Tensor"] == 1 and left["aten.add.Tensor"] == 1
    flat = nn.Sequential(nn.Flatten(), nn.Linear(486, 6), nn.BatchNorm1d(6))
    flat.eval().requires_grad_(False)
    modified, _ = run(BatchNormFolding, graph_of(flat))
    assert modified
    conv = nn.Conv2d(6, 6, 1).requires_grad_(False)

    def also_read(x: Tensor) -> Tensor:
        y = conv(x)
        return y + norm(y)

    modified, left = run(BatchNormFolding, graph_of(also_read))
    assert not modified and left["aten.native_batch_norm.default"] == 1


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_scale_folding(transposed: bool, groups: int) -> None:
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    conv = kind(6, 12, 3, groups=groups).requires_grad_(False)
    scale = nn.Parameter(torch.randn(6, 1, 1), requires_grad=False)
    modified, left = run(ScaleFolding, graph_of(lambda x: conv(x * scale)))
    assert modified and set(left) == {"aten.convolution.default"}


def test_scale_folding_leaves_shared_products() -> None:
    conv = nn.Conv2d(6, 6, 1).requires_grad_(False)
    scale = nn.Parameter(torch.randn(1, 6, 1, 1), requires_grad=False)

    def shared(x: Tensor) -> Tensor:
        y = x * scale
        return conv(y) + y

    modified, left = run(ScaleFolding, graph_of(shared))
    assert not modified and left["aten.mul.Tensor"] == 1


def test_scale_folding_leaves_a_broadcast() -> None:
    conv = nn.Conv2d(6, 6, 1).requires_grad_(False)
    scale = nn.Parameter(torch.randn(1, 6, 1, 1), requires_grad=False)
    modified, _ = run(ScaleFolding, graph_of(lambda x: conv(x.mean(1, True) * scale)))
    assert not modified


def test_common_subexpression_elimination() -> None:
    def twice(x: Tensor) -> Tensor:
        gate = torch.sigmoid(x)
        return x * gate + torch.sigmoid(x) * torch.full((1,), 2.0) + torch.full((1,), 2.0)

    modified, left = run(CommonSubexpressionElimination, graph_of(twice))
    assert modified and left["aten.sigmoid.default"] == 1 and left["aten.full.default"] == 1


def test_common_subexpression_elimination_tells_types_and_randomness_apart() -> None:
    def apart(x: Tensor) -> Tensor:
        whole = aten.full.default([3], 1, dtype=torch.float32)
        truth = aten.full.default([3], True, dtype=torch.float32)
        return x.sum() + whole.sum() + truth.sum() + 0 * (torch.rand(2) - torch.rand(2)).sum()

    module = graph_of(apart)
    CommonSubexpressionElimination()(module)
    left = counted(module)
    assert left["aten.full.default"] == 2 and left["aten.rand.default"] == 2


def test_clean_drops_the_weights_that_nobody_reads() -> None:
    model = nn.Sequential(nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6)).eval().requires_grad_(False)
    module = graph_of(model)
    expected = module(X)
    module = clean(module)
    torch.testing.assert_close(module(X), expected, atol=1e-5, rtol=1e-4)
    kept = [*dict(module.named_buffers()), *dict(module.named_parameters())]
    assert len(kept) == 2


class Padded(nn.Module):
    """Padding beside convolutions, as EfficientNet's ports have it."""

    def __init__(self, pads: list[int], value: float, stride: int, kernel: int) -> None:
        super().__init__()
        self.pads, self.value = pads, value
        self.first = nn.Conv2d(3, 4, 1)
        self.second = nn.Conv2d(4, 4, kernel, stride, groups=2)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.pad(self.first(x).relu(), self.pads, value=self.value)
        return self.head(self.second(x).relu().mean((2, 3)))


@pytest.mark.parametrize(
    ("pads", "value", "stride", "kernel", "left"),
    [
        ([1, 1, 1, 1], 0.0, 1, 3, {}),
        ([2, 2, 2, 2], 0.0, 2, 5, {}),
        ([2, 2, 1, 1], 0.0, 2, 5, {}),
        ([1, 1], 0.0, 1, 3, {}),
        ([0, 1, 0, 1], 0.0, 2, 3, {"pad": 1, "slice": 2}),  # the sides differ
        ([1, 0, 1, 0], 0.0, 1, 3, {"pad": 1, "slice": 2}),
        ([1, 1, 1, 1], 0.5, 1, 3, {"pad": 1}),  # not zeros
    ],
)
def test_padding_folding(
    pads: list[int], value: float, stride: int, kernel: int, left: dict[str, int]
) -> None:
    torch.manual_seed(0)
    model = Padded(pads, value, stride, kernel).eval()
    session = Explainer(
        model, input_size=(16, 19), layers=["first", "second"], device="cpu"
    ).session
    assert isinstance(session, ModelSession)
    joint = session.joint(session.top)
    found = counted(joint.module)
    for name, target in (("pad", "constant_pad_nd"), ("slice", "slice"), ("cat", "cat")):
        count = sum(n for key, n in found.items() if key.startswith(f"aten.{target}."))
        assert count == left.get(name, 0), (name, found)
    images = torch.randn(3, 3, 16, 19, dtype=torch.float64)
    expected = {}
    for layer in ("first", "second"):
        a, g = acts_and_grads(model.double(), layer, images, torch.tensor([2, 0, 1]), "logit")
        expected[layer] = (g.mean((2, 3), keepdim=True) * a).sum(1).relu()
    explainer = Explainer(
        model.float(), input_size=(16, 19), layers=["first", "second"], score="logit",
        keep_layers=True, device="cpu",
    )  # fmt: skip
    maps = explainer(images.float(), torch.tensor([2, 0, 1])).layer_maps
    for layer, wanted in expected.items():
        torch.testing.assert_close(maps[layer][:, 0].double(), wanted, atol=1e-6, rtol=1e-5)


def test_padding_of_a_value_that_others_read_stays_right() -> None:
    block = X.new_full((2, 6, 9, 1), 0.0)

    def function(x: Tensor) -> Tensor:
        wide = torch.cat([block * 0 + x.new_full((2, 6, 9, 1), 0.0), x], 3)
        both = torch.cat([x.new_full((2, 6, 1, 9), 1.0), x, x.new_full((2, 6, 2, 9), 0.0)], 2)
        return wide.sum() + both * 2

    modified, found = run(PaddingFolding, graph_of(function))
    assert not modified and found["aten.cat.default"] == 2
