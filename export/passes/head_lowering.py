"""Replace the CAM head by standard operators, for runtimes without ``combicam::cam_head``."""

from __future__ import annotations

from torch import fx
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from combicam.export.passes.inlining import inline
from combicam.kernels.cam_head import cam_head_reference


class HeadLowering(PassBase):
    """cam_head(acts, grads, ...)  ->  the operators of ``cam_head_reference``."""

    def ensures(self, graph_module: fx.GraphModule) -> None:
        """Check that none of our operators is left."""
        for node in graph_module.graph.nodes:
            assert getattr(node.target, "namespace", "aten") != "combicam", node.format_node()

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        nodes = graph_module.graph.nodes
        heads = [node for node in nodes if str(node.target) == "combicam.cam_head.default"]
        for node in heads:
            inline(graph_module, node, cam_head_reference)
        graph_module.graph.eliminate_dead_code()
        return PassResult(graph_module, bool(heads))
