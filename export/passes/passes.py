"""Apply the passes in the right order.

Every pass rewrites the joint graph, in its own file of that name. Each is a ``torch.fx`` pass:
``requires`` and ``ensures`` check the graph, ``call`` returns a ``PassResult`` that has
``modified`` set only if something changed.
"""

from __future__ import annotations

import copy
import logging

from torch import fx
from torch.fx.passes.infra.pass_base import PassBase

from combicam.export.passes.affine_conversion import AffineConversion
from combicam.export.passes.batch_norm_folding import BatchNormFolding
from combicam.export.passes.channel_padding import ChannelPadding
from combicam.export.passes.clamp_reading import ClampReading
from combicam.export.passes.common_subexpression_elimination import CommonSubexpressionElimination
from combicam.export.passes.constant_folding import ConstantFolding
from combicam.export.passes.crop_folding import CropFolding
from combicam.export.passes.epilogue_fusion import EpilogueFusion
from combicam.export.passes.expand_sinking import ExpandSinking
from combicam.export.passes.gate_spreading import GateSpreading
from combicam.export.passes.head_lowering import HeadLowering
from combicam.export.passes.identity_elimination import IdentityElimination
from combicam.export.passes.layer_norm_splitting import LayerNormSplitting
from combicam.export.passes.max_pool_masking import MaxPoolMasking
from combicam.export.passes.max_unpool_fusion import MaxUnpoolFusion
from combicam.export.passes.mean_pooling import MeanPooling
from combicam.export.passes.operator_splitting import OperatorSplitting
from combicam.export.passes.padding_folding import PaddingFolding
from combicam.export.passes.scale_folding import ScaleFolding
from combicam.export.passes.sign_gating import SignGating
from combicam.export.passes.zero_insertion import ZeroInsertion

log = logging.getLogger(__name__)  # `combicam export --verbose` shows it

PASSES = (
    IdentityElimination,
    PaddingFolding,
    ConstantFolding,
    BatchNormFolding,
    ExpandSinking,
    ScaleFolding,
    CommonSubexpressionElimination,
)
# Use the operators of ONNX.
_ONNX_PASSES: tuple[type[PassBase], ...] = (
    OperatorSplitting,
    ConstantFolding,
    CommonSubexpressionElimination,
    ExpandSinking,
    ScaleFolding,
    ClampReading,
    CropFolding,
)
# By the program that runs the file. ONNX Runtime's CPU provider keeps tensors in a blocked layout:
# each of the last passes leaves more of them blocked. Max pools of TensorRT and of WebGPU have no
# indices, nor TensorRT's layer norms statistics; OpenVINO scatters on one core.
ONNX_PASSES: dict[str, tuple[type[PassBase], ...]] = {
    "onnxruntime-cpu": (
        *_ONNX_PASSES,
        MaxUnpoolFusion,
        ZeroInsertion,
        ChannelPadding,
        AffineConversion,
        GateSpreading,
        SignGating,
        MeanPooling,
    ),
    "onnxruntime-cuda": _ONNX_PASSES,
    "openvino": (MaxPoolMasking, *_ONNX_PASSES),
    "tensorrt": (MaxPoolMasking, LayerNormSplitting, *_ONNX_PASSES),
    "web": (MaxPoolMasking, *_ONNX_PASSES),
}


def clean(module: fx.GraphModule) -> fx.GraphModule:
    """Run every pass once, in order; the module is changed in place and returned."""
    for make in PASSES:
        module = _applied(make(), module)
    drop_unused_buffers(module)
    module.graph.lint()
    module.recompile()
    return module


def lower(module: fx.GraphModule) -> fx.GraphModule:
    """A copy with only standard operators; weights are shared."""
    copied = fx.GraphModule(module, copy.deepcopy(module.graph))
    return clean(_applied(HeadLowering(), copied))


def for_onnx(module: fx.GraphModule, runtime: str) -> fx.GraphModule:
    """A copy of a portable graph as a runtime (a key of ``ONNX_PASSES``) likes it; weights are
    shared."""
    copied = fx.GraphModule(module, copy.deepcopy(module.graph))
    passes: list[type[PassBase]] = [*ONNX_PASSES[runtime], CommonSubexpressionElimination]
    for make in passes:
        copied = _applied(make(), copied)
    drop_unused_buffers(copied)
    copied.graph.lint()
    copied.recompile()
    return copied


def for_eager_cuda(module: fx.GraphModule) -> fx.GraphModule:
    """A copy for eager torch with cuDNN, where 16 bit convolutions add no bias on their own."""
    copied = _applied(EpilogueFusion(), fx.GraphModule(module, copy.deepcopy(module.graph)))
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
    """Delete constants that no node reads."""
    used = {node.target for node in module.graph.nodes if node.op == "get_attr"}
    for name in [*dict(module.named_buffers()), *dict(module.named_parameters())]:
        if name not in used:
            delattr(module, name)
