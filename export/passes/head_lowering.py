"""Replace the CAM head by standard operators, for runtimes without ``combicam::cam_head``."""

from __future__ import annotations

import operator

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from combicam.kernels.cam_head import cam_head_reference


class HeadLowering(PassBase):
    """cam_head(acts, grads, ...)  ->  the operators of ``cam_head_reference``.

    Requires the shapes that the trace recorded in ``meta["val"]``.
    """

    def ensures(self, graph_module: fx.GraphModule) -> None:
        """Check that none of our operators is left."""
        for node in graph_module.graph.nodes:
            assert getattr(node.target, "namespace", "aten") != "combicam", node.format_node()

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        modified = False
        for node in list(graph_module.graph.nodes):
            if node.target is torch.ops.combicam.cam_head.default:
                _inline(graph_module, node)
                modified = True
        graph_module.graph.eliminate_dead_code()
        return PassResult(graph_module, modified)


def _inline(module: fx.GraphModule, node: fx.Node) -> None:
    acts, grads, *rest = node.args
    assert isinstance(acts, (list, tuple)) and isinstance(grads, (list, tuple))
    scale = [n for n in rest if isinstance(n, fx.Node)]
    rest = [n for n in rest if not isinstance(n, fx.Node)]
    sources = [*acts, *grads, *scale]
    values = [source.meta["val"] for source in sources]
    count = len(acts)

    def head(*tensors: Tensor) -> list[Tensor]:
        each, more = tensors[count : 2 * count], tensors[2 * count :]
        return cam_head_reference(tensors[:count], each, *rest, *more)  # type: ignore[arg-type]

    with values[0].fake_mode:
        lowered = make_fx(head)(*values)
    copies: dict[fx.Node, fx.Node] = {}
    inputs = iter(sources)
    outputs: list[fx.Node] = []
    with module.graph.inserting_before(node):
        for inner in lowered.graph.nodes:
            if inner.op == "placeholder":
                copies[inner] = next(inputs)
            elif inner.op == "output":
                outputs = [copies[n] for n in inner.args[0]]
            else:
                copies[inner] = module.graph.node_copy(inner, lambda n: copies[n])
    for user in list(node.users):
        assert user.target is operator.getitem
        user.replace_all_uses_with(outputs[user.args[1]])  # type: ignore[index]
        module.graph.erase_node(user)
    module.graph.erase_node(node)
