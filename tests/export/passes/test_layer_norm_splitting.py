"""Layer norms without statistics: equal to torch's, forward and backward."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from combicam.export.passes.layer_norm_splitting import LayerNormSplitting

aten = torch.ops.aten


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(6,), (5, 6)])
def test_gradients(affine: bool, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    weights = [torch.randn(shape, dtype=torch.float64) for _ in range(2)] if affine else []
    x, grad = torch.randn(2, 13, 4, 5, 6, dtype=torch.float64)

    def both(x: Tensor, grad: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
        x = x.detach().requires_grad_()
        y = nn.functional.layer_norm(x, shape, *weights, eps=1e-3)
        return y.detach(), torch.autograd.grad(y, x, grad)[0]

    expected = both(x, grad, *weights)
    module = make_fx(both, tracing_mode="symbolic")(x[:11], grad[:11], *weights)
    result = LayerNormSplitting()(module)
    assert result.modified
    result.graph_module.graph.lint()
    result.graph_module.recompile()
    torch.testing.assert_close(result.graph_module(x, grad, *weights), expected)
    assert not LayerNormSplitting()(result.graph_module).modified


def test_half_precision_is_computed_in_float32() -> None:
    torch.manual_seed(0)
    x = 100 * torch.randn(4, 64) + 50

    def split(x: Tensor) -> Tensor:
        y, mean, inverse = aten.native_layer_norm.default(x, [64], None, None, 1e-5)
        return y + 0 * (mean + inverse).to(x.dtype)

    module = make_fx(split)(x.half())
    result = LayerNormSplitting()(module)
    assert result.modified
    result.graph_module.recompile()
    expected = nn.functional.layer_norm(x, (64,))
    torch.testing.assert_close(
        result.graph_module(x.half()).float(), expected, atol=2e-3, rtol=2e-3
    )


def test_a_norm_that_is_only_read_stays() -> None:
    module = make_fx(lambda x: nn.functional.layer_norm(x, (6,)))(torch.randn(2, 6))
    assert not LayerNormSplitting()(module).modified
