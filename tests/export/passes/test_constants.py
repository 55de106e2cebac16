"""Names of constants: none is taken twice, whatever was dropped before."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.passes.infra.pass_base import PassBase

from combicam.export.passes.affine_conversion import AffineConversion
from combicam.export.passes.batch_norm_folding import BatchNormFolding
from combicam.export.passes.channel_padding import ChannelPadding
from combicam.export.passes.constant_folding import ConstantFolding
from combicam.export.passes.constants import add_constant
from combicam.export.passes.gate_spreading import GateSpreading
from combicam.export.passes.passes import drop_unused_buffers
from combicam.export.passes.scale_folding import ScaleFolding

X = torch.randn(2, 16, 4, 4, generator=torch.Generator().manual_seed(0))


class Behind(nn.Module):
    """What a pass rewrites, behind two convolutions."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        wide = kind == "padding"
        self.first = nn.Conv2d(16, 24 if wide else 16, 1)
        self.second = nn.Conv2d(24 if wide else 16, 32 if wide else 16, 1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.norm.running_mean = torch.randn(16)
        self.scale = nn.Parameter(torch.rand(1, 16, 1, 1) + 1)
        self.kind = kind
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if self.kind == "constants":
            return torch.nn.functional.conv2d(x, self.second.weight.flip(0) * 2)
        if self.kind == "norm":
            return self.norm(self.second(x))
        if self.kind == "scale":
            return self.second(x * self.scale)
        if self.kind == "number":
            return self.second(x) * 3.0
        if self.kind == "affine":
            return self.second(1.5 - x)
        if self.kind == "gate":
            return self.second(x * torch.sigmoid(x.mean((2, 3), keepdim=True)))
        return self.second(x)


PASSES: dict[str, type[PassBase]] = {
    "constants": ConstantFolding,
    "norm": BatchNormFolding,
    "scale": ScaleFolding,
    "number": ScaleFolding,
    "affine": AffineConversion,
    "gate": GateSpreading,
    "padding": ChannelPadding,
}


def read_more(module: fx.GraphModule, names: set[str]) -> None:
    """Add a constant of each name, which the graph adds to its result."""
    output = module.graph.output_node()
    for name in sorted(names):
        module.register_buffer(name, torch.full((1,), 7.0))
        with module.graph.inserting_before(output):
            constant = module.graph.get_attr(name)
            output.args = (module.graph.call_function(torch.add, (output.args[0], constant)),)
    module.recompile()


@pytest.mark.parametrize("kind", PASSES)
def test_a_pass_overwrites_no_constant(kind: str) -> None:
    """Every name that it gave is in use already, and so is the one that a count would give."""
    module = make_fx(Behind(kind))(X)
    rewritten = PASSES[kind]()(make_fx(Behind(kind))(X)).graph_module
    names = set(dict(rewritten.named_buffers())) - set(dict(module.named_buffers()))
    assert names
    numbered = {f"{name.rstrip('_0123456789')}_{n}" for name in names for n in range(24, 72)}
    read_more(module, names | numbered)
    expected = module(X)
    result = PASSES[kind]()(module)
    assert result.modified
    result.graph_module.recompile()
    torch.testing.assert_close(result.graph_module(X), expected, atol=1e-4, rtol=1e-5)


def test_a_name_whose_number_comes_again_after_dropping() -> None:
    """By hand: 2 · 3 · x + 21 is 27 for x = 1; with the product in place of the 21 it is 12."""
    root = nn.Module()
    for name, value in (("w", 3.0), ("factor", 2.0), ("s_3", 21.0)):
        root.register_buffer(name, torch.full((1, 1, 1, 1), value))
    graph = fx.Graph()
    x = graph.placeholder("x")
    x.meta["val"] = torch.ones(1, 1, 1, 1)
    w, factor, summand = (graph.get_attr(name) for name in ("w", "factor", "s_3"))
    product = graph.call_function(torch.ops.aten.mul.Tensor, (x, factor))
    settings = (None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1)
    conv = graph.call_function(torch.ops.aten.convolution.default, (product, w, *settings))
    graph.output(graph.call_function(torch.ops.aten.add.Tensor, (conv, summand)))
    module = fx.GraphModule(root, graph)
    module.register_buffer("unread", torch.zeros(1))
    drop_unused_buffers(module)  # three are left, so that the next by count is s_3 again
    assert len(dict(module.named_buffers())) == 3
    result = ScaleFolding()(module)
    result.graph_module.recompile()
    assert result.modified and float(result.graph_module(x.meta["val"])) == 27


def test_names_count_on() -> None:
    module = fx.GraphModule(nn.Module(), fx.Graph())
    nodes = [add_constant(module, "w", torch.full((1,), float(n))) for n in range(3)]
    assert [node.target for node in nodes] == ["w", "w_1", "w_2"]
    delattr(module, "w_1")
    assert add_constant(module, "w", torch.zeros(1)).target == "w_1"
    assert add_constant(module, "graph", torch.zeros(1)).target == "graph_1"  # of the module itself
    assert [float(module.get_buffer(n)) for n in ("w", "w_2")] == [0, 2]
