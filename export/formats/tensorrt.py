"""Know which ONNX operators TensorRT has, within which limits, and how it builds an engine.

Source: ONNX-TensorRT, docs/operators.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from combicam.lazy import lazy_module

if TYPE_CHECKING:
    import onnx_ir as ir
else:  # slow to import: only what looks into a file does
    ir = lazy_module("onnx_ir")


VERSION = "TensorRT 10.15"
OPSETS = (9, 24)

_FLOATS = """
    Acos Acosh Asin Asinh Atan Atanh AveragePool BatchNormalization Ceil Celu Clip Conv
    ConvTranspose Cos Cosh CumSum DeformConv Dropout Einsum Elu Erf Exp Floor Gemm
    GlobalAveragePool GlobalLpPool GlobalMaxPool GridSample GroupNormalization GRU HardSigmoid
    HardSwish Hardmax InstanceNormalization IsInf LayerNormalization LeakyRelu Log LogSoftmax
    LpNormalization LpPool LRN LSTM MatMul MaxPool MeanVarianceNormalization Mish NonMaxSuppression
    NonZero PRelu Reciprocal Resize RMSNormalization RNN RoiAlign Round Scan Selu Sigmoid Sin Sinh
    Softmax Softplus Softsign Sqrt STFT Tan Tanh ThresholdedRelu Upsample
"""
_NUMBERS = """
    Abs Add ArgMax ArgMin DepthToSpace Div Equal Gelu Greater GreaterOrEqual IsNaN Less LessOrEqual
    Max Mean Min Mod Mul Neg Pad Pow Range ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax
    ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Scatter ScatterElements
    ScatterND Shrink Sign SpaceToDepth Sub Sum TopK
"""
_EVERYTHING = """
    Cast CastLike Concat Constant ConstantOfShape Expand EyeLike Flatten Gather GatherElements
    GatherND Identity If Loop OneHot Reshape ReverseSequence Shape Size Slice Split Squeeze Tile
    Transpose Trilu Unsqueeze Where
"""

_DECIMALS = ("FLOAT", "FLOAT16", "BFLOAT16")
_ALL_NUMBERS = (*_DECIMALS, "INT32", "INT64")
# Operator -> the types of its tensors.
OPERATORS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(_FLOATS.split(), _DECIMALS),
    **dict.fromkeys(_NUMBERS.split(), _ALL_NUMBERS),
    **dict.fromkeys(_EVERYTHING.split(), (*_ALL_NUMBERS, "BOOL")),
    **dict.fromkeys(("And", "Not", "Or", "Xor"), ("BOOL",)),
}
# Operator -> its inputs that must be known when the engine is built.
_CONSTANT_INPUTS: dict[str, tuple[int, ...]] = {
    "CumSum": (1,),
    "OneHot": (1,),
    "Squeeze": (1,),
    "Unsqueeze": (1,),
    "TopK": (1,),
    **{name: (1,) for name in OPERATORS if name.startswith("Reduce")},
}
_MOST_TOP = 3839  # TopK's k
_RESIZE = {
    "coordinate_transformation_mode": (
        *("half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn", "asymmetric"),
        "align_corners",
    ),
    "mode": ("nearest", "linear"),
    "nearest_mode": ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil"),
    "keep_aspect_ratio_policy": ("stretch",),
}
# Of comparisons and searches, whose results have other types than what they read.
_COMPARISONS = ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "IsInf", "IsNaN")
_OTHER_OUTPUTS = {**{name: "BOOL" for name in _COMPARISONS}, "NonZero": "INT64"}


def trtexec(path: Path, model: ir.Model) -> str:
    """The command that builds an engine of a file, for batches from 1 to 64."""
    shapes = {}
    for value in model.graph.inputs:
        if value.shape is not None and value.name:
            shapes[value.name] = [n if isinstance(n, int) else 0 for n in value.shape]
    profile = []
    for kind, batch in (("min", 1), ("opt", 32), ("max", 64)):
        sizes = (
            f"{name}:{'x'.join(str(n or batch) for n in shape)}" for name, shape in shapes.items()
        )
        profile.append(f"--{kind}Shapes={','.join(sizes)}")
    halves = any(
        value.dtype == ir.DataType.FLOAT16 for node in model.graph for value in node.outputs
    )
    types = "--stronglyTyped" if halves else "--noTF32"  # compute as the file says
    engine = path.with_suffix(".plan").name
    return " ".join([f"trtexec --onnx={path.name} --saveEngine={engine} {types}", *profile])


def node_faults(node: ir.Node) -> Iterator[tuple[str, str]]:
    """What TensorRT has against a node: ``missing`` or ``slow``, and the reason."""
    operator = node.op_type
    types = OPERATORS.get(operator)
    if types is None or node.domain not in ("", "ai.onnx"):
        yield "missing", "it has no such operator"
        return
    used = [value for value in node.outputs if value.uses() or value.is_graph_output()]
    if operator in ("MaxPool", "LayerNormalization") and used != [node.outputs[0]]:
        yield "missing", "it has the first output only"
        used = used[:1]
    made = {value.dtype.name for value in used if value.dtype is not None}
    refused = sorted(made - set(types) - {_OTHER_OUTPUTS.get(operator)})
    if refused:
        yield "missing", f"it computes no {', '.join(refused)}"
    for index in _CONSTANT_INPUTS.get(operator, ()):
        if index < len(node.inputs) and not _is_constant(node.inputs[index]):
            yield "missing", f"its input {index} must be known when the engine is built"
    if operator in ("Conv", "ConvTranspose") and not _is_constant(node.inputs[1]):
        yield (
            "slow",
            "its weight is computed, no initializer; write it with runtime='tensorrt' (--for)",
        )
    if operator in ("MaxPool", "AveragePool", "LpPool"):
        if set(_value(node, "dilations") or (1,)) != {1}:
            yield "missing", "it has no dilations"
        if len(_value(node, "kernel_shape") or (1, 1)) not in (2, 3):
            yield "missing", "it pools two or three axes"
    if operator == "ScatterND" and _value(node, "reduction") not in (None, "none"):
        yield "missing", "it scatters without a reduction only"
    if operator == "TopK":
        k = ir.convenience.get_const_tensor(node.inputs[1]) if node.inputs[1] else None
        if _value(node, "sorted") == 0 or (k is not None and int(k.numpy().max()) > _MOST_TOP):
            yield "missing", f"it sorts, and finds at most {_MOST_TOP}"
    if operator == "Resize":
        for name, known in _RESIZE.items():
            if _value(node, name) is not None and _value(node, name) not in known:
                yield "missing", f"it has no {name} {_value(node, name)}"
        if _value(node, "antialias"):
            yield "missing", "it has no antialiasing"


def _value(node: ir.Node, name: str) -> Any:
    attribute = node.attributes.get(name)
    return None if attribute is None else attribute.value


def _is_constant(value: ir.Value | None) -> bool:
    return value is None or ir.convenience.get_const_tensor(value) is not None
