"""Compute at export everything that depends only on weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from combicam.export.passes.constants import add_constant

# A constant that is larger than its sources by more is left to the runtime.
MAX_GROWTH = 1 << 16


class ConstantFolding(PassBase):
    """f(W) -> W' for every operator f with only constant inputs.

    Cases:
        1. the result has a static shape and a user that is not constant: it becomes a buffer;
        2. a result much larger than its sources (a broadcast) stays an operator;
        3. a random operator stays.
    """

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        graph = graph_module.graph
        values: dict[fx.Node, Any] = {}
        for node in graph.nodes:
            if node.op == "get_attr":
                values[node] = _attribute(graph_module, str(node.target))
            elif node.op == "call_function" and _foldable(node, values):
                result = _evaluate(node, values)
                if not _grew(result, node, values):  # case 2
                    values[node] = result
        modified = False
        for node, value in values.items():
            if node.op == "get_attr" or not isinstance(value, Tensor):
                continue
            if all(user in values for user in node.users):
                continue
            with graph.inserting_before(node):
                constant = add_constant(graph_module, "folded", _dense(value.detach()))
            constant.meta = dict(node.meta)
            node.replace_all_uses_with(constant)
            modified = True  # case 1
        graph.eliminate_dead_code()
        return PassResult(graph_module, modified)


def _dense(value: Tensor) -> Tensor:
    """Without gaps; the weight of a channels-last convolution stays one."""
    if value.ndim == 4 and value.is_contiguous(memory_format=torch.channels_last):
        return value
    return value.contiguous()


def _attribute(module: fx.GraphModule, target: str) -> Any:
    value: Any = module
    for part in target.split("."):
        value = getattr(value, part)
    return value


def _foldable(node: fx.Node, values: dict[fx.Node, Any]) -> bool:
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        random = torch.Tag.nondeterministic_seeded in target.tags  # case 3
        if random or target._schema.is_mutable or target.namespace != "aten":
            return False
    val = node.meta.get("val")
    if isinstance(val, Tensor) and any(not isinstance(s, int) for s in val.shape):
        return False
    return isinstance(val, (Tensor, tuple, list)) and all(n in values for n in node.all_input_nodes)


def _evaluate(node: fx.Node, values: dict[fx.Node, Any]) -> Any:
    args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), lambda n: values[n])
    with torch.no_grad():
        return node.target(*args, **kwargs)  # type: ignore[operator]


def _grew(result: Any, node: fx.Node, values: dict[fx.Node, Any]) -> bool:
    if not isinstance(result, Tensor):
        return False
    sources = sum(v.numel() for n in node.all_input_nodes if isinstance(v := values[n], Tensor))
    return result.numel() > sources + MAX_GROWTH
