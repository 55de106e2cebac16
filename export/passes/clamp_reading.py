"""Compare a clamped value with its bounds instead of what was clamped."""

from __future__ import annotations

from typing import Any

from torch import fx
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from combicam.export.passes.blocked_layout import aten

CLAMPS = (aten.hardtanh.default, aten.clamp.default)


class ClampReading(PassBase):
    """x <= a, x >= b  ->  y <= a, y >= b, for y = clamp(x, a, b).

    The backward of ReLU6 compares the value before the clamp, so that runtimes could not compute
    it together with the convolution in front of it.
    """

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        modified = False
        for node in list(graph_module.graph.nodes):
            if node.target not in CLAMPS or len(node.args) != 3 or node.kwargs:
                continue
            x, low, high = node.args
            for user in list(x.users):
                if (user.target, user.args[1:]) in (
                    (aten.le.Scalar, (low,)),
                    (aten.ge.Scalar, (high,)),
                ) and node < user:
                    user.replace_input_with(x, node)
                    modified = True
        return PassResult(graph_module, modified)


def bounds(condition: object) -> tuple[fx.Node, float, float] | None:
    """The y, a and b of (y <= a) | (y >= b) where y is clamped to them."""
    if not isinstance(condition, fx.Node) or condition.target is not aten.bitwise_or.Tensor:
        return None
    arguments: tuple[Any, ...] = condition.args
    below, above = arguments
    if below.target is not aten.le.Scalar or above.target is not aten.ge.Scalar:
        return None
    y, low = below.args
    if above.args[0] is not y or y.target not in CLAMPS or y.args[1:] != (low, above.args[1]):
        return None
    return y, float(low), float(above.args[1])
