"""Rewrites of the joint graph, one a file.

Each is a ``torch.fx`` pass: ``requires`` and ``ensures`` check the graph, ``call`` returns a
``PassResult`` whose ``modified`` is true only when something changed.
"""

from __future__ import annotations

import copy

from torch import fx

from combicam.export.passes.drop_aliases import DropAliases
from combicam.export.passes.fold_batch_norm import FoldBatchNorm
from combicam.export.passes.fold_constants import FoldConstants
from combicam.export.passes.fold_scale import FoldScale
from combicam.export.passes.lower_head import LowerHead
from combicam.export.passes.merge_common import MergeCommon

PASSES = (DropAliases, FoldConstants, FoldBatchNorm, FoldScale, MergeCommon)


def clean(module: fx.GraphModule) -> fx.GraphModule:
    """Run every pass once, in order; the module is changed in place and returned."""
    for make in PASSES:
        result = make()(module)
        assert result is not None
        module = result.graph_module
    drop_unused_buffers(module)
    module.graph.lint()
    module.recompile()
    return module


def lower(module: fx.GraphModule) -> fx.GraphModule:
    """A copy in standard operators alone; weights are shared."""
    copied = fx.GraphModule(module, copy.deepcopy(module.graph))
    result = LowerHead()(copied)
    assert result is not None
    return clean(result.graph_module)


def drop_unused_buffers(module: fx.GraphModule) -> None:
    """Delete the constants that no node reads any more."""
    used = {node.target for node in module.graph.nodes if node.op == "get_attr"}
    for name in [*dict(module.named_buffers()), *dict(module.named_parameters())]:
        if name not in used:
            delattr(module, name)


__all__ = [
    "PASSES",
    "DropAliases",
    "FoldBatchNorm",
    "FoldConstants",
    "FoldScale",
    "LowerHead",
    "MergeCommon",
    "clean",
    "lower",
]
