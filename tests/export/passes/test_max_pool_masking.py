"""The backward of max pooling without indices: equal to torch's, ties and borders included."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from combicam.export.passes.constant_folding import ConstantFolding
from combicam.export.passes.max_pool_masking import MaxPoolMasking

POOLS = {
    "tiles": nn.MaxPool2d(2),
    "tiles, not square": nn.MaxPool2d((2, 3)),
    "tiles with a rest": nn.MaxPool2d(5),
    "tiles with a part of one": nn.MaxPool2d(5, ceil_mode=True),
    "overlapping": nn.MaxPool2d(3, stride=2),
    "overlapping with padding": nn.MaxPool2d(3, stride=2, padding=1),
    "overlapping, ceil": nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True),
    "same size": nn.MaxPool2d(3, stride=1, padding=1),
    "gaps": nn.MaxPool2d(2, stride=3),
    "dilated": nn.MaxPool2d(2, stride=2, dilation=2),
    "different axes": nn.MaxPool2d((3, 2), stride=(1, 2), padding=(1, 0)),
}


@pytest.mark.parametrize("name", POOLS)
def test_gradients_are_torchs(name: str) -> None:
    pool = POOLS[name]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(13, 5, 12, 12, generator=generator).relu()  # many ties at zero
    grad = torch.randn(pool(x).shape, generator=generator)

    def backward(x: Tensor, grad: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        return torch.autograd.grad(pool(x), x, grad)[0]

    expected = backward(x, grad)
    module = make_fx(backward, tracing_mode="symbolic")(x[:11], grad[:11])
    result = MaxPoolMasking()(module)
    assert result.modified
    folded = ConstantFolding()(result.graph_module).graph_module
    folded.graph.lint()
    folded.recompile()
    torch.testing.assert_close(folded(x, grad), expected, atol=1e-6, rtol=1e-6)
    left = Counter(str(n.target) for n in folded.graph.nodes if n.op == "call_function")
    assert not any("indices" in operator or "scatter" in operator for operator in left), left
    assert not MaxPoolMasking()(folded).modified


def test_a_pool_whose_indices_are_needed_keeps_them() -> None:
    def indices(x: Tensor) -> Tensor:
        return nn.functional.max_pool2d(x, 2, return_indices=True)[1]

    module = make_fx(indices)(torch.randn(1, 2, 4, 4))
    assert not MaxPoolMasking()(module).modified
