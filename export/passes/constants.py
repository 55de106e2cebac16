"""Add constants to a graph under unique names."""

from __future__ import annotations

from itertools import chain, count

from torch import Tensor, fx


def add_constant(module: fx.GraphModule, name: str, value: Tensor) -> fx.Node:
    """Register a new buffer, and read it at the graph's insertion point.

    Args:
        module: the graph.
        name: of the buffer; if the graph has one with this name, a number is appended.
        value: of the constant.
    """
    names = chain((name,), (f"{name}_{number}" for number in count(1)))
    free = next(candidate for candidate in names if not hasattr(module, candidate))
    module.register_buffer(free, value)
    return module.graph.get_attr(free)
