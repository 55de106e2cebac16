"""Remove operators that return their input unchanged."""

from __future__ import annotations

import torch
from torch import fx
from torch.fx.passes.infra.pass_base import PassBase, PassResult

aten = torch.ops.aten
IDENTITIES = frozenset(
    {
        aten.alias.default,
        aten.detach.default,
        aten.clone.default,
        aten.lift_fresh_copy.default,
        aten.dropout.default,
    }
)


SHAPED = (
    aten.expand.default,
    aten.view.default,
    aten.reshape.default,
    aten._unsafe_view.default,
)


class IdentityElimination(PassBase):
    """f(x) -> x for identities f; in a functional graph, copies need not be kept.

    Cases:
        1. alias, detach, clone, lift_fresh_copy: always (except a clone that changes the memory
           format of a contiguous tensor, which a later view may need);
        2. expand, view and reshape that keep the shape;
        3. copy(x, y), which is y in the shape and dtype of x, if y has them already.
    """

    def requires(self, graph_module: fx.GraphModule) -> None:
        """Check that all operators are functional."""
        for node in graph_module.graph.nodes:
            if isinstance(node.target, torch._ops.OpOverload):
                assert not node.target._schema.is_mutable, node.format_node()

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        modified = False
        for node in list(graph_module.graph.nodes):
            if node.op != "call_function":
                continue
            if node.target is aten.copy.default and _alike(node.args[0], node.args[1]):  # case 3
                source = node.args[1]
            elif _is_identity(node):
                source = node.args[0]
            else:
                continue
            node.replace_all_uses_with(source)
            graph_module.graph.erase_node(node)
            modified = True
        return PassResult(graph_module, modified)


def _is_identity(node: fx.Node) -> bool:
    if node.target in IDENTITIES:
        return _keeps_layout(node)  # case 1
    if node.target in SHAPED:
        return _alike(node.args[0], node)  # case 2
    return False


def _alike(a: object, b: object) -> bool:
    """Whether two nodes are known to have the same shape and dtype."""
    if not (isinstance(a, fx.Node) and isinstance(b, fx.Node)):
        return False
    x, y = a.meta.get("val"), b.meta.get("val")
    return x is not None and y is not None and x.shape == y.shape and x.dtype == y.dtype


def _keeps_layout(node: fx.Node) -> bool:
    if node.target is not aten.clone.default or "memory_format" not in node.kwargs:
        return True
    source, result = node.args[0].meta.get("val"), node.meta.get("val")  # type: ignore[union-attr]
    return source is not None and result is not None and source.stride() == result.stride()
