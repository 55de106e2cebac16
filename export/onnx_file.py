"""A joint graph as an ONNX file."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import onnx
import torch
from onnxscript import opset18
from torch import Tensor, fx

from combicam.errors import TraceError, first_line
from combicam.export.trace import JointGraph, example_inputs

METADATA_KEY = "combicam"
aten = torch.ops.aten


@torch.library.custom_op("combicam::resize", mutates_args=())
def _resize(
    x: Tensor,
    height: int,
    width: int,
    align_corners: bool,
    scale_h: float | None,
    scale_w: float | None,
) -> Tensor:
    return aten.upsample_bilinear2d.default(x, [height, width], align_corners, scale_h, scale_w)


@_resize.register_fake
def _(
    x: Tensor,
    height: int,
    width: int,
    align_corners: bool,
    scale_h: float | None,
    scale_w: float | None,
) -> Tensor:
    return x.new_empty([*x.shape[:2], height, width])


def _onnx_resize(
    x: Any,
    height: int,
    width: int,
    align_corners: bool,
    scale_h: float | None = None,
    scale_w: float | None = None,
) -> Any:
    mode = "align_corners" if align_corners else "pytorch_half_pixel"
    if scale_h is not None and scale_w is not None:  # where samples lie depends on the factor
        scales: Any = opset18.Constant(value_floats=[1.0, 1.0, scale_h, scale_w])
        return opset18.Resize(x, None, scales, mode="linear", coordinate_transformation_mode=mode)
    batch: Any = opset18.Shape(x, start=0, end=2)
    sizes: Any = opset18.Concat(batch, opset18.Constant(value_ints=[height, width]), axis=0)
    return opset18.Resize(x, None, None, sizes, mode="linear", coordinate_transformation_mode=mode)


def _keep_resize(module: fx.GraphModule) -> fx.GraphModule:
    """Upsampling as one node of ours: the exporter takes aten's apart into gathers."""
    for node in list(module.graph.nodes):
        if node.target is aten.upsample_bilinear2d.default:
            x, (height, width), align_corners, *scales = node.args
            scale_h, scale_w = scales or (None, None)
            with module.graph.inserting_before(node):
                resize = module.graph.call_function(
                    torch.ops.combicam.resize.default,
                    (x, height, width, align_corners, scale_h, scale_w),
                )
            resize.meta = dict(node.meta)
            node.replace_all_uses_with(resize)
            module.graph.erase_node(node)
    module.recompile()
    return module


def write_onnx(joint: JointGraph, path: Path, metadata: str) -> None:
    """Write an ONNX file: opset 18, dynamic batch, ``metadata`` under the key ``combicam``.

    Weights beyond the 2 GB of a protobuf go to ``<name>.data`` beside it.

    Raises:
        TraceError: an operator has no ONNX form.
    """
    inputs = example_inputs(joint)
    batch = torch.export.Dim("batch")
    names = ["images", "targets"][: len(inputs)]
    module = _keep_resize(joint.module)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(
                module, inputs, dynamic_shapes=tuple({0: batch} for _ in inputs), strict=False
            )
            exported = torch.onnx.export(
                program,
                inputs,
                dynamo=True,
                input_names=names,
                output_names=list(joint.output_names),
                custom_translation_table={torch.ops.combicam.resize.default: _onnx_resize},
                opset_version=18,
                optimize=True,
                verbose=False,
            )
    except Exception as error:
        raise TraceError(
            f"export: no ONNX form was found ({first_line(error.__cause__ or error)})"
        ) from error
    assert exported is not None
    exported.model.metadata_props[METADATA_KEY] = metadata
    weights = sum(t.numel() * t.element_size() for t in joint.module.buffers())
    exported.save(str(path), external_data=weights > 1_900_000_000)
    onnx.checker.check_model(str(path))
