"""Merge nodes that compute the same value."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable
from typing import Any

import torch
from torch import fx
from torch.fx.passes.infra.pass_base import PassBase, PassResult


class CommonSubexpressionElimination(PassBase):
    """f(x), f(x) -> one f(x), such as the sigmoid of a SiLU in the forward and in the backward.

    Cases:
        1. the same operator on the same arguments;
        2. constants of equal value;
        3. random operators are never merged.
    """

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        seen: dict[Hashable, fx.Node] = {}
        modified = False
        for node in list(graph_module.graph.nodes):
            key = _key(graph_module, node)
            if key is None:
                continue
            if key in seen:
                node.replace_all_uses_with(seen[key])
                graph_module.graph.erase_node(node)
                modified = True
            else:
                seen[key] = node
        graph_module.graph.eliminate_dead_code()
        return PassResult(graph_module, modified)


def _key(module: fx.GraphModule, node: fx.Node) -> Hashable | None:
    if node.op == "get_attr":
        value = getattr(module, str(node.target), None)
        if not isinstance(value, torch.Tensor):
            return None
        flat = value.detach().cpu().reshape(-1).view(torch.uint8)
        digest = hashlib.blake2b(flat.numpy().data).digest()
        return ("constant", digest, tuple(value.shape), value.dtype, value.device)  # case 2
    if node.op != "call_function":
        return None
    if isinstance(node.target, torch._ops.OpOverload):
        if torch.Tag.nondeterministic_seeded in node.target.tags:  # case 3
            return None
    return (node.target, _frozen(node.args), _frozen(node.kwargs))  # case 1


def _frozen(value: Any) -> Hashable:
    if isinstance(value, dict):
        return tuple((k, _frozen(v)) for k, v in sorted(value.items()))
    if isinstance(value, (list, tuple)):
        return tuple(_frozen(v) for v in value)
    return (type(value).__name__, value)  # 1, True and 1.0 are different arguments
