"""List the ONNX operators that TensorRT and ONNX Runtime's CUDA provider have."""

from __future__ import annotations

# ONNX-TensorRT, docs/operators.md: what it parses, and with which types.
TENSORRT = "TensorRT 10.15"
TENSORRT_OPSETS = (9, 24)

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

FLOATS = ("FLOAT", "FLOAT16", "BFLOAT16")
NUMBERS = (*FLOATS, "INT32", "INT64")
# Operator -> the types of its tensors.
TENSORRT_OPERATORS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(_FLOATS.split(), FLOATS),
    **dict.fromkeys(_NUMBERS.split(), NUMBERS),
    **dict.fromkeys(_EVERYTHING.split(), (*NUMBERS, "BOOL")),
    **dict.fromkeys(("And", "Not", "Or", "Xor"), ("BOOL",)),
}
# Operator -> its inputs that must be known when the engine is built.
CONSTANT_INPUTS: dict[str, tuple[int, ...]] = {
    "CumSum": (1,),
    "OneHot": (1,),
    "Squeeze": (1,),
    "Unsqueeze": (1,),
    "TopK": (1,),
    **{name: (1,) for name in TENSORRT_OPERATORS if name.startswith("Reduce")},
}
MOST_TOP = 3839  # TopK's k
RESIZE = {
    "coordinate_transformation_mode": (
        *("half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn", "asymmetric"),
        "align_corners",
    ),
    "mode": ("nearest", "linear"),
    "nearest_mode": ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil"),
    "keep_aspect_ratio_policy": ("stretch",),
}

# Its list of kernels: what runs on the GPU; other operators run on the CPU, with copies.
CUDA_PROVIDER = "ONNX Runtime 1.31's CUDA provider"
CUDA_OPERATORS = frozenset(
    """
    Abs Add And ArgMax ArgMin AveragePool BatchNormalization Cast Ceil Clip Compress Concat
    ConcatFromSequence ConstantOfShape Conv ConvTranspose Cos CumSum DeformConv DepthToSpace
    DequantizeLinear Div Dropout Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor Gather
    GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual
    GridSample GRU HardSigmoid HardSwish Identity If InstanceNormalization IsInf IsNaN
    LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax Loop LpNormalization LRN LSTM
    MatMul MatMulInteger Max MaxPool Min Mod Mul Neg NonMaxSuppression NonZero Not OneHot Or Pad
    Pow PRelu QuantizeLinear RandomNormal RandomNormalLike RandomUniform RandomUniformLike Range
    Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin
    ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize ReverseSequence RMSNormalization RNN
    RoiAlign Round Scan Scatter ScatterElements ScatterND Selu SequenceAt SequenceConstruct
    SequenceEmpty SequenceErase SequenceInsert SequenceLength Shape Shrink Sigmoid Sign Sin Size
    Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tanh ThresholdedRelu
    Tile TopK Transpose Trilu Unsqueeze Upsample Where Xor
    """.split()
)
