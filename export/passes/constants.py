"""Add constants to a graph, each under a name of its own."""

from __future__ import annotations

from itertools import chain, count

from torch import Tensor, fx


def add_constant(module: fx.GraphModule, name: str, value: Tensor) -> fx.Node:
    """Register a buffer that replaces none, and read it at the graph's insertion point.

    Args:
        module: the graph.
        name: of the buffer; where the graph has one, with the first number that makes it new.
        value: of the constant.
    """
    names = chain((name,), (f"{name}_{number}" for number in count(1)))
    free = next(candidate for candidate in names if not hasattr(module, candidate))
    module.register_buffer(free, value)
    return module.graph.get_attr(free)
