"""The passes for ONNX Runtime: what each removes, what it leaves, and that the numbers stay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

from combicam.export.passes.affine_conversion import AffineConversion
from combicam.export.passes.channel_padding import ChannelPadding
from combicam.export.passes.clamp_reading import ClampReading
from combicam.export.passes.common_subexpression_elimination import CommonSubexpressionElimination
from combicam.export.passes.constant_folding import ConstantFolding
from combicam.export.passes.crop_folding import CropFolding
from combicam.export.passes.expand_sinking import ExpandSinking
from combicam.export.passes.gate_spreading import GateSpreading
from combicam.export.passes.max_unpool_fusion import MaxUnpoolFusion
from combicam.export.passes.mean_pooling import MeanPooling
from combicam.export.passes.operator_splitting import splits
from combicam.export.passes.scale_folding import ScaleFolding
from combicam.export.passes.sign_gating import STEEP, SignGating
from combicam.export.passes.zero_insertion import ZeroInsertion
from combicam.export.trace.decompositions import decompositions

aten = torch.ops.aten
X = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(0))


class Blocks(nn.Module):
    """Convolutions in front of a function, so that what it reads is blocked."""

    def __init__(self, function: Callable[..., Tensor], channels: int = 16, count: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convs = nn.ModuleList(nn.Conv2d(16, channels, 1) for _ in range(count))
        self.function = function
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(*(conv(x) for conv in self.convs))


def rewritten(make: type, function: Callable[[Tensor], Tensor]) -> tuple[bool, Counter[str]]:
    """Run a pass twice: numbers stay, and the second time nothing is left to do."""
    module = make_fx(function, decomposition_table={**decompositions(), **splits()})(X)
    module = ConstantFolding()(module).graph_module
    module.recompile()
    expected = module(X)
    result = make()(module)
    result.graph_module.graph.lint()
    result.graph_module.recompile()
    torch.testing.assert_close(result.graph_module(X), expected, atol=1e-5, rtol=1e-4)
    assert not make()(result.graph_module).modified
    return result.modified, counted(result.graph_module)


def counted(module: fx.GraphModule) -> Counter[str]:
    return Counter(str(n.target) for n in module.graph.nodes if n.op == "call_function")


def test_expand_sinking() -> None:
    def pooled(x: Tensor) -> Tensor:
        g = (x.mean((2, 3), keepdim=True).expand(2, 16, 8, 8) / 64).mul(2.0)
        lifted = g.unsqueeze(1).mean((3, 4))[:, 0, :, None, None]
        return g * x + g.mean((2, 3), keepdim=True) + lifted

    modified, left = rewritten(ExpandSinking, pooled)
    assert modified and not any("expand" in name for name in left)
    assert left["aten.mean.dim"] == 1


def test_expand_sinking_leaves_what_is_needed_in_full() -> None:
    def full(x: Tensor) -> Tensor:
        small = x.mean((2, 3), keepdim=True)
        large = small.expand(2, 16, 8, 8)
        return large.sum() + (large + small).sum() + large.mean((1, 2, 3), keepdim=True).sum()

    modified, left = rewritten(ExpandSinking, full)
    assert not modified and left["aten.expand.default"] == 1


@pytest.mark.parametrize("divide", [False, True])
def test_scale_folding_behind_a_convolution(divide: bool) -> None:
    conv = nn.Conv2d(16, 8, 3, bias=False).requires_grad_(False)
    modified, left = rewritten(ScaleFolding, lambda x: conv(x) / 49 if divide else conv(x) * 3.0)
    assert modified and set(left) == {"aten.convolution.default"}


def test_scale_folding_leaves_a_bias() -> None:
    conv = nn.Conv2d(16, 8, 3).requires_grad_(False)
    modified, _ = rewritten(ScaleFolding, lambda x: conv(x) / 49)
    assert not modified


def test_affine_conversion() -> None:
    def inner(x: Tensor, y: Tensor) -> Tensor:
        return (x - y + 1) * (1 - x) + (y - x) * (y * 0.5 + 2.0)

    modified, left = rewritten(AffineConversion, Blocks(inner))
    assert modified and left["combicam.affine.default"] == 5
    assert not {"aten.sub.Tensor", "aten.rsub.Scalar"} & set(left)


def test_affine_conversion_leaves_plain_layouts() -> None:
    modified, _ = rewritten(AffineConversion, lambda x: 1 - x)
    assert not modified
    modified, _ = rewritten(AffineConversion, Blocks(lambda x, y: x - y + 1, channels=15))
    assert not modified


@pytest.mark.parametrize("blocked", [True, False])
def test_gate_spreading(blocked: bool) -> None:
    def gated(x: Tensor, y: Tensor) -> Tensor:
        gate = y.mean((2, 3), keepdim=True)
        gate = torch.sigmoid(conv(gate) if blocked else gate.exp())
        return x * gate + y * gate + gate

    conv = nn.Conv2d(16, 16, 1).requires_grad_(False)
    modified, left = rewritten(GateSpreading, Blocks(gated))
    assert modified and left["combicam.spread.default"] == 1
    assert left["aten.convolution.default"] == 3


def test_gate_spreading_leaves_plain_layouts() -> None:
    modified, _ = rewritten(GateSpreading, lambda x: x * x.mean((2, 3), keepdim=True))
    assert not modified


def relu_backward(y: Tensor, g: Tensor) -> Tensor:
    return aten.threshold_backward(g, y.relu(), 0)


@pytest.mark.parametrize("form", ["blocked", "plain", "small"])
def test_sign_gating(form: str) -> None:
    def gated(y: Tensor, g: Tensor) -> Tensor:
        g = {"blocked": g, "plain": g.exp(), "small": g.mean((2, 3), keepdim=True)}[form]
        return aten.where.self(y.relu() <= 0, torch.zeros(()), g)

    modified, left = rewritten(SignGating, Blocks(gated))
    assert modified and "aten.where.self" not in left and "aten.le.Scalar" not in left


def test_sign_gating_is_exact() -> None:
    """Zeros give zeros and the smallest activations count in full."""
    y = torch.tensor([0.0, 1e-25, 1e-6, 1.0, 1e30])
    assert torch.equal(torch.tanh(y * STEEP), torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0]))


@pytest.mark.parametrize("form", ["blocked", "plain", "small"])
@pytest.mark.parametrize("limits", [(0.0, 6.0), (-1.0, 1.0), (0.1, 0.7)])
def test_sign_gating_of_clamps(form: str, limits: tuple[float, float]) -> None:
    def gated(x: Tensor, g: Tensor) -> Tensor:
        g = {"blocked": g, "plain": g.exp(), "small": g.mean((2, 3), keepdim=True)}[form]
        y = aten.hardtanh.default(4 * x, *limits)
        return aten.where.self((y <= limits[0]) | (y >= limits[1]), torch.zeros(()), g) + y

    def read(x: Tensor, g: Tensor) -> Tensor:  # 4 x is no convolution: y is not blocked
        return gated(x, g)

    modified, left = rewritten(SignGating, Blocks(read))
    assert not modified and left["aten.where.self"] == 1

    def scaled(x: Tensor, g: Tensor) -> Tensor:
        return gated(x / 4, g)

    graph = make_fx(Blocks(scaled))(X)
    for node in list(graph.graph.nodes):  # the convolution itself is clamped
        if node.target in (aten.mul.Tensor, aten.div.Tensor):
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
    graph.recompile()
    expected = graph(20 * X)
    result = SignGating()(ConstantFolding()(graph).graph_module)
    result.graph_module.recompile()
    assert result.modified and "aten.where.self" not in counted(result.graph_module)
    assert torch.equal(result.graph_module(20 * X), expected)


@pytest.mark.parametrize("limits", [(0.0, 6.0), (-1.0, 1.0), (0.1, 0.7), (-7.3, 900.0)])
def test_the_sign_within_a_clamp_is_exact(limits: tuple[float, float]) -> None:
    """At the bounds zero, beside them one; with one rounding or two."""
    low, high = (torch.tensor(limit) for limit in limits)
    least = torch.nextafter(low, high) if limits[0] else torch.tensor(1e-25)
    inside = [least, (low + high) / 2, torch.nextafter(high, low)]
    y = torch.stack([low, *inside, high])
    scale, shift = torch.tensor(-STEEP), torch.tensor(limits[1] * STEEP)
    for below in (y * scale + shift, (y.double() * scale.double() + shift.double()).float()):
        assert torch.tanh((y - low) * below).tolist() == [0, 1, 1, 1, 0]


def test_clamps_are_compared_instead_of_what_they_clamp() -> None:
    def backward(x: Tensor) -> Tensor:
        y = aten.hardtanh.default(4 * x, 0.0, 6.0)
        other = torch.where((4 * x <= 0.0) | (4 * x >= 5.0), 0.0, x)
        return torch.where((4 * x <= 0.0) | (4 * x >= 6.0), 0.0, x) + y + other

    graph = CommonSubexpressionElimination()(make_fx(backward)(X)).graph_module
    expected = graph(X)
    result = ClampReading()(graph)
    result.graph_module.recompile()
    assert result.modified and torch.equal(result.graph_module(X), expected)
    clamp = next(n for n in graph.graph.nodes if n.target is aten.hardtanh.default)
    read = Counter(str(user.target) for user in clamp.users)
    assert read["aten.le.Scalar"] == 1 and read["aten.ge.Scalar"] == 1
    assert not ClampReading()(result.graph_module).modified


def test_sign_gating_leaves_plain_layouts() -> None:
    modified, left = rewritten(SignGating, lambda x: relu_backward(x, x.exp()))
    assert not modified and left["aten.where.self"] == 1


def test_mean_pooling() -> None:
    def pooled(x: Tensor, y: Tensor) -> Tensor:
        kept = (x * y).sum((2, 3), keepdim=True) + x.mean((-1, -2), keepdim=True)
        return kept[:, :, 0, 0] + y.mean((2, 3)) + x.unsqueeze(1).mean((3, 4))[:, 0]

    modified, left = rewritten(MeanPooling, Blocks(pooled))
    assert modified and left["combicam.global_mean.default"] == 4
    assert not {"aten.mean.dim", "aten.sum.dim_IntList"} & set(left)


def test_mean_pooling_leaves_other_axes() -> None:
    def other(x: Tensor, y: Tensor) -> Tensor:
        return x.mean((1, 2)) + y.mean(2).sum(1)[:, :8] + x.unsqueeze(1).mean((2, 3))[:, 0]

    modified, _ = rewritten(MeanPooling, Blocks(other))
    assert not modified


def test_channel_padding() -> None:
    wide = nn.Conv2d(24, 48, 1).requires_grad_(False)
    narrow = nn.Conv2d(24, 20, 1).requires_grad_(False)
    modified, left = rewritten(ChannelPadding, Blocks(lambda x: wide(x), channels=24, count=1))
    assert modified and left["aten.constant_pad_nd.default"] == 1
    modified, _ = rewritten(ChannelPadding, Blocks(lambda x: narrow(x), channels=24, count=1))
    assert not modified


class Transposed(nn.ConvTranspose2d):
    """A transposed convolution whose output loses its sides."""

    def __init__(self, *arguments: int, crop: tuple[int, int, int, int], **options: object) -> None:
        torch.manual_seed(0)
        super().__init__(*arguments, **options)  # type: ignore[arg-type]
        self.crop = crop
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        top, left, bottom, right = self.crop
        y = super().forward(x)
        return y[:, :, top : y.shape[2] - bottom, left : y.shape[3] - right]


@pytest.mark.parametrize(
    ("kernel", "stride", "crop"),
    [
        *((3, 2, (0, 0, 1, 1)), (3, 2, (1, 0, 0, 0)), (4, 4, (1, 3, 0, 0))),
        *((5, 2, (1, 1, 2, 2)), (5, 2, (0, 3, 2, 0)), (5, 3, (1, 2, 2, 1))),
    ],
)
def test_depthwise_gradients_of_strides(
    kernel: int, stride: int, crop: tuple[int, int, int, int]
) -> None:
    conv = Transposed(16, 16, kernel, stride, groups=16, bias=kernel == 3, crop=crop)
    for make in (CropFolding, ZeroInsertion):
        modified, left = rewritten(make, conv)
        assert modified
    uncropped = Transposed(16, 16, 3, 2, 1, 1, groups=16, crop=(0, 0, 0, 0))
    modified, left = rewritten(ZeroInsertion, uncropped)
    assert modified and left["aten.convolution.default"] == left["combicam.spread.default"] == 1

    def both(x: Tensor) -> Tensor:
        return conv(x.relu())  # type: ignore[no-any-return]

    module = make_fx(both)(X)
    expected = module(X)
    for make in (CropFolding, ZeroInsertion):
        module = make()(module).graph_module
    module.recompile()
    torch.testing.assert_close(module(X), expected, atol=1e-5, rtol=1e-4)
    left = counted(module)
    assert left["combicam.spread.default"] == 1 and left["aten.slice.Tensor"] == 0
    held = next(n for n in module.graph.nodes if n.target is aten.mul.Tensor).meta["val"]
    assert held.shape == (2, 16, 8 * stride, 8 * stride)


def test_zero_insertion_leaves_other_gradients() -> None:
    for conv in (
        Transposed(16, 16, 3, 2, crop=(0, 0, 0, 0)),  # of whole matrices
        Transposed(16, 32, 3, 2, groups=16, crop=(0, 0, 0, 0)),  # two filters a channel
        Transposed(16, 16, 3, 1, groups=16, crop=(0, 0, 0, 0)),  # no stride
        Transposed(16, 16, 3, 2, groups=16, dilation=2, crop=(0, 0, 0, 0)),
        Transposed(16, 16, 3, 2, 3, groups=16, crop=(0, 0, 0, 0)),  # padding beyond the filter
        Transposed(16, 16, 4, 4, 1, groups=16, crop=(0, 0, 0, 0)),  # behind the last zero
    ):
        assert not rewritten(ZeroInsertion, conv)[0]


def test_crop_folding_of_ordinary_convolutions() -> None:
    conv = nn.Conv2d(16, 16, 4, padding=2).requires_grad_(False)
    modified, left = rewritten(CropFolding, lambda x: conv(x)[:, :, 1:, :-2])
    assert modified and left["combicam.convolution.default"] == 1
    for other in (
        lambda x: conv(x)[:, :, 3:],  # more than its padding
        lambda x: conv(x)[:, 1:],  # channels
        lambda x: conv(x)[:, :, ::2],
        lambda x: torch.cat((conv(x)[:, :, 1:], conv(x)[:, :, :-1]), 2),
        lambda x: nn.functional.conv2d(x, conv.weight, stride=2, padding=2)[:, :, 1:],
    ):
        module = make_fx(other)(X)
        CommonSubexpressionElimination()(module)
        assert not CropFolding()(module).modified


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(2, 2, 0), (4, 4, 0), (3, 2, 1)])
def test_max_unpool_fusion(kernel: int, stride: int, padding: int) -> None:
    def pooled(x: Tensor) -> Tensor:
        x = x.relu()  # windows of zeros: the first counts
        x.requires_grad_()
        y = nn.functional.max_pool2d(x, kernel, stride, padding)
        return torch.autograd.grad((y.exp()).sum(), x)[0]

    modified, left = rewritten(MaxUnpoolFusion, pooled)
    assert modified == (padding == 0) == (left["aten.scatter_add.default"] == 0)
