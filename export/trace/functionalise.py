"""Replace in-place operators of a traced graph by functional ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

aten = torch.ops.aten


def functionalise(module: fx.GraphModule, inputs: Sequence[Tensor]) -> fx.GraphModule:
    """Trace the graph again with every mutation replaced by a new value; a no-op without mutations.

    Args:
        module: a flat graph of operators.
        inputs: fake tensors, as for the first trace.
    """
    mutating = [node for node in module.graph.nodes if _mutates(node)]
    if not mutating:
        return module
    for node in mutating:
        _split(module, node)
    module.recompile()
    return make_fx(torch.func.functionalize(module))(*inputs)


def _mutates(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _twin(packet: Any, mutating: torch._ops.OpOverload) -> torch._ops.OpOverload | None:
    """The overload that takes the same arguments; its name may differ (``pow_.Scalar``)."""

    def types(operator: torch._ops.OpOverload) -> list[str]:
        return [str(argument.type) for argument in operator._schema.arguments]

    same_name = getattr(packet, mutating._overloadname, None)
    named = [getattr(packet, name) for name in packet.overloads()] if packet else []
    each = [same_name, *named] if same_name is not None else named
    return next((twin for twin in each if types(twin) == types(mutating)), None)


def _split(module: fx.GraphModule, node: fx.Node) -> None:
    """f_(x, ...)  ->  copy_(x, f(x, ...)): many in-place operators have no symbolic form."""
    assert isinstance(node.target, torch._ops.OpOverload)
    namespace, name = node.target._schema.name.split("::")
    packet = getattr(getattr(torch.ops, namespace), name.removesuffix("_"), None)
    twin = _twin(packet, node.target)
    if node.target is aten.copy_.default or not name.endswith("_") or twin is None:
        return
    with module.graph.inserting_before(node):
        value = module.graph.call_function(twin, node.args, dict(node.kwargs))
        copy = module.graph.call_function(aten.copy_.default, (node.args[0], value))
    node.replace_all_uses_with(copy)
    module.graph.erase_node(node)
