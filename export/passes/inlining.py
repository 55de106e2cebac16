"""Replace a node by the operators of a Python function."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx


def inline(module: fx.GraphModule, node: fx.Node, function: Callable[..., Any]) -> None:
    """f(x, ...)  ->  the operators of ``function(x, ...)``, a tensor or a list of tensors.

    Args:
        module: the graph; ``meta["val"]`` of the node's tensors has the shapes of the trace.
        node: of an operator.
        function: takes the same arguments.
    """
    sources = list(node.all_input_nodes)
    values = [source.meta["val"] for source in sources]

    def called(*tensors: Any) -> Any:
        given = dict(zip(sources, tensors, strict=True))
        args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), lambda n: given[n])
        return function(*args, **kwargs)

    with values[0].fake_mode:
        traced = make_fx(called)(*values)
    copies: dict[fx.Node, fx.Node] = {}
    inputs = iter(sources)
    result: Any = None
    with module.graph.inserting_before(node):
        for inner in traced.graph.nodes:
            if inner.op == "placeholder":
                copies[inner] = next(inputs)
            elif inner.op == "output":
                result = fx.node.map_arg(inner.args[0], lambda n: copies[n])
            else:
                copies[inner] = module.graph.node_copy(inner, lambda n: copies[n])
                copies[inner].meta = {**node.meta, **inner.meta}  # where the node came from
    if isinstance(result, fx.Node):
        node.replace_all_uses_with(result)
    else:
        for user in list(node.users):
            assert user.target is operator.getitem
            user.replace_all_uses_with(result[user.args[1]])
            module.graph.erase_node(user)
    module.graph.erase_node(node)
