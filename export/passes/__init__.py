"""Rewrites of the joint graph, one a file.

Each is a ``torch.fx`` pass: ``requires`` and ``ensures`` check the graph, ``call`` returns a
``PassResult`` whose ``modified`` is true only when something changed.
"""

from __future__ import annotations

import copy
import logging

from torch import fx
from torch.fx.passes.infra.pass_base import PassBase

from combicam.export.passes.affine_scalars import AffineScalars
from combicam.export.passes.common_subexpression_elimination import MergeCommon
from combicam.export.passes.fold_batch_norm import FoldBatchNorm
from combicam.export.passes.fold_constants import FoldConstants
from combicam.export.passes.fold_scale import FoldScale
from combicam.export.passes.gate_by_sign import GateBySign
from combicam.export.passes.identity_elimination import DropAliases
from combicam.export.passes.lower_head import LowerHead
from combicam.export.passes.pad_channels import PadChannels
from combicam.export.passes.pool_means import PoolMeans
from combicam.export.passes.sink_expand import SinkExpand
from combicam.export.passes.spread_gates import SpreadGates
from combicam.export.passes.unpool_maxima import UnpoolMaxima

log = logging.getLogger(__name__)  # `combicam export --verbose` shows it

PASSES = (DropAliases, FoldConstants, FoldBatchNorm, FoldScale, MergeCommon)
# Where ONNX Runtime would leave its blocked layout; each keeps more tensors in it for the next.
ONNX_PASSES = (
    SinkExpand,
    FoldScale,
    UnpoolMaxima,
    PadChannels,
    AffineScalars,
    SpreadGates,
    GateBySign,
    PoolMeans,
)


def clean(module: fx.GraphModule) -> fx.GraphModule:
    """Run every pass once, in order; the module is changed in place and returned."""
    for make in PASSES:
        module = _applied(make(), module)
    drop_unused_buffers(module)
    module.graph.lint()
    module.recompile()
    return module


def lower(module: fx.GraphModule) -> fx.GraphModule:
    """A copy in standard operators alone; weights are shared."""
    copied = fx.GraphModule(module, copy.deepcopy(module.graph))
    return clean(_applied(LowerHead(), copied))


def for_onnx(module: fx.GraphModule) -> fx.GraphModule:
    """A copy of a portable graph as ONNX Runtime runs it best; weights are shared."""
    copied = fx.GraphModule(module, copy.deepcopy(module.graph))
    for make in (*ONNX_PASSES, MergeCommon):
        copied = _applied(make(), copied)
    drop_unused_buffers(copied)
    copied.graph.lint()
    copied.recompile()
    return copied


def _applied(rewrite: PassBase, module: fx.GraphModule) -> fx.GraphModule:
    before = len(module.graph.nodes)
    result = rewrite(module)
    assert result is not None
    after = len(result.graph_module.graph.nodes)
    log.info("%s: %d -> %d nodes", type(rewrite).__name__, before, after)
    return result.graph_module


def drop_unused_buffers(module: fx.GraphModule) -> None:
    """Delete the constants that no node reads any more."""
    used = {node.target for node in module.graph.nodes if node.op == "get_attr"}
    for name in [*dict(module.named_buffers()), *dict(module.named_parameters())]:
        if name not in used:
            delattr(module, name)


__all__ = [
    "ONNX_PASSES",
    "PASSES",
    "AffineScalars",
    "DropAliases",
    "FoldBatchNorm",
    "FoldConstants",
    "FoldScale",
    "GateBySign",
    "LowerHead",
    "MergeCommon",
    "PadChannels",
    "PoolMeans",
    "SinkExpand",
    "SpreadGates",
    "UnpoolMaxima",
    "clean",
    "for_onnx",
    "lower",
]
