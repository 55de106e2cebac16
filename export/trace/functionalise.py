"""Replace in-place operators of a traced graph by functional ones."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import Tensor, fx

from combicam.export.trace.origins import LabelledInterpreter, retrace

aten = torch.ops.aten


def functionalise(module: fx.GraphModule, inputs: Sequence[Tensor]) -> fx.GraphModule:
    """Replace every mutation by a new value; a no-op without mutations.

    Cases, of ``f_(x, ...)``:

    1. no view of x that was made before is used later: later uses of x take ``f(x, ...)``;
    2. otherwise the graph is traced again, which is as slow as the first trace.

    Args:
        module: a flat graph of operators.
        inputs: fake tensors, as for the first trace.
    """
    for node in module.graph.find_nodes(op="call_function", target=aten._conj.default):
        _conjugate(module, node)
    order = {node: i for i, node in enumerate(module.graph.nodes)}
    left = [node for node in list(order) if _mutates(node) and not _renamed(module, node, order)]
    for node in left:
        _split(module, node)
    module.recompile()
    if not left:
        return module
    return retrace(torch.func.functionalize(LabelledInterpreter(module).run), inputs)


def _conjugate(module: fx.GraphModule, node: fx.Node) -> None:
    """Conjugate at once: the lazy conjugate of torch cannot be viewed as real numbers."""
    value = node.args[0]
    if isinstance(value, fx.Node):
        node.target = aten._conj_physical.default
        return
    assert isinstance(value, complex)
    for user in list(node.users):
        user.args = tuple(value.conjugate() if a is node else a for a in user.args)
    module.graph.erase_node(node)


def _mutates(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _twin(node: fx.Node) -> torch._ops.OpOverload | None:
    """The functional form of an in-place operator: the overload that takes the same arguments,
    whose name may differ (``pow_.Scalar``)."""
    mutating = node.target
    assert isinstance(mutating, torch._ops.OpOverload)
    namespace, name = mutating._schema.name.split("::")
    packet = getattr(getattr(torch.ops, namespace), name.removesuffix("_"), None)
    if mutating is aten.copy_.default or not name.endswith("_") or packet is None:
        return None
    if torch.Tag.inplace_view in mutating.tags:  # changes a shape: functionalize knows these
        return None

    def types(operator: torch._ops.OpOverload) -> list[str]:
        return [str(argument.type) for argument in operator._schema.arguments]

    def takes(twin: torch._ops.OpOverload) -> bool:
        """Whether what the node leaves out has a default in the functional form, too."""
        rest = twin._schema.arguments[len(node.args) :]
        return all(a.has_default_value() or a.name in node.kwargs for a in rest)

    named = [getattr(packet, key) for key in packet.overloads()]
    named.sort(key=lambda twin: twin._overloadname != mutating._overloadname)
    return next((t for t in named if types(t) == types(mutating) and takes(t)), None)


def _renamed(module: fx.GraphModule, node: fx.Node, order: dict[fx.Node, int]) -> bool:
    """Case 1."""
    twin, x = _twin(node), node.args[0]
    if twin is None or not isinstance(x, fx.Node) or not _is_fresh(x):
        return False
    # The result must have the type of x, which in-place operators keep.
    dtypes = {arg.meta["val"].dtype for arg in node.all_input_nodes if _is_tensor(arg)}
    if len(dtypes) != 1 or _viewed_later(x, order, order[node]):
        return False
    with module.graph.inserting_before(node):
        value = module.graph.call_function(twin, node.args, dict(node.kwargs))
    value.meta = dict(node.meta)
    order[value] = order[node]
    x.replace_all_uses_with(value, delete_user_cb=lambda user: order[user] > order[node])
    node.replace_all_uses_with(value)
    module.graph.erase_node(node)
    return True


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), Tensor)


def _is_fresh(node: fx.Node) -> bool:
    """Whether an operator made new memory for this value: no input, weight or view."""
    if node.target is operator.getitem:
        node = node.all_input_nodes[0]
    return isinstance(node.target, torch._ops.OpOverload) and not _is_alias(node)


def _is_alias(node: fx.Node) -> bool:
    assert isinstance(node.target, torch._ops.OpOverload)
    schema = node.target._schema
    # contiguous() and the like may return their argument.
    return any(r.alias_info is not None for r in schema.returns) or node.target in _MAY_ALIAS


_MAY_ALIAS = {
    aten._to_copy.default,
    aten.contiguous.default,
    aten.reshape.default,
    aten.expand.default,
    aten._reshape_alias.default,
    aten._unsafe_view.default,
}


def _viewed_later(x: fx.Node, order: dict[fx.Node, int], now: int) -> bool:
    """Whether memory of x has another name that is used after this point."""
    waiting = [user for user in x.users if order[user] < now]
    while waiting:
        user = waiting.pop()
        is_list = user.target is operator.getitem
        if not is_list and not (isinstance(user.target, torch._ops.OpOverload) and _is_alias(user)):
            continue
        if any(order[other] > now for other in user.users):
            return True
        waiting += user.users
    return False


def _split(module: fx.GraphModule, node: fx.Node) -> None:
    """f_(x, ...)  ->  copy_(x, f(x, ...)): many in-place operators have no symbolic form."""
    twin = _twin(node)
    if twin is None:
        return
    with module.graph.inserting_before(node):
        value = module.graph.call_function(twin, node.args, dict(node.kwargs))
        copy = module.graph.call_function(aten.copy_.default, (node.args[0], value))
    node.replace_all_uses_with(copy)
    module.graph.erase_node(node)
