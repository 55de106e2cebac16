"""Write a joint graph as an ONNX file."""

from __future__ import annotations

import copy
import importlib
import re
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import onnx
import torch
from torch import Tensor, fx

from combicam.errors import TraceError, first_line
from combicam.export.formats.onnx_opset import DEFAULT_OPSET, check_written, lower_opset
from combicam.export.formats.onnx_weights import halve_weights, share_weights
from combicam.export.formats.runtimes import DEFAULT_RUNTIME, RUNTIMES
from combicam.export.passes.constants import add_constant
from combicam.export.passes.passes import for_onnx
from combicam.export.trace.origins import LabelledInterpreter, culprit
from combicam.export.trace.trace import JointGraph, example_inputs

METADATA_KEY = "combicam"
aten, ours = torch.ops.aten, torch.ops.combicam


def _prepared(module: fx.GraphModule) -> fx.GraphModule:
    """Replace what the exporter refuses or makes worse; cases:

    1. upsampling becomes an operator of ours: the exporter would split aten's into gathers;
    2. ``view`` becomes ``reshape``: the exporter refuses views of expanded tensors;
    3. bounds of integers become comparisons: TensorRT clips no integers, and the exporter would
       make a clip of maxima and minima;
    4. what it knows in other words only: see :func:`_exported`.
    """
    for node in list(module.graph.nodes):
        if node.target is aten.view.default:
            node.target = aten.reshape.default
        if node.target is aten._adaptive_avg_pool2d.default:
            x, into = node.args
            kernel = [a // b for a, b in zip(x.meta["val"].shape[2:], into, strict=True)]
            if [k * n for k, n in zip(kernel, into, strict=True)] == list(x.meta["val"].shape[2:]):
                node.target, node.args = aten.avg_pool2d.default, (x, kernel, kernel)
        if node.target is aten.clamp.default and not node.meta["val"].is_floating_point():
            _bound(module, node)
            continue
        with module.graph.inserting_before(node):
            if node.target is aten.rsub.Scalar and len(node.args) == 2:
                negative = module.graph.call_function(aten.neg.default, (node.args[0],))
                negative.meta = dict(node.meta)
                node.target, node.args = aten.add.Tensor, (negative, node.args[1])
            if node.target is aten.squeeze.dims:
                x, dims = node.args
                rank = x.meta["val"].ndim
                for dim in sorted((d % rank for d in dims), reverse=True):
                    x = module.graph.call_function(aten.squeeze.dim, (x, dim))
                node.replace_all_uses_with(x)
                module.graph.erase_node(node)
        if node.target is aten.upsample_bilinear2d.default:
            x, (height, width), align_corners, *scales = node.args
            scale_h, scale_w = scales or (None, None)
            with module.graph.inserting_before(node):
                resize = module.graph.call_function(
                    ours.resize.default,
                    (x, height, width, align_corners, scale_h, scale_w),
                )
            resize.meta = dict(node.meta)
            node.replace_all_uses_with(resize)
            module.graph.erase_node(node)
    module.recompile()
    return module


def _bound(module: fx.GraphModule, clamp: fx.Node) -> None:
    """clamp(x, low, ...)  ->  where(x < low, low, x), and the same above, for integers."""
    arguments: tuple[Any, ...] = clamp.args
    result, *bounds = arguments
    like = clamp.meta["val"]
    with module.graph.inserting_before(clamp):
        for bound, beyond in zip(bounds, (aten.lt.Scalar, aten.gt.Scalar), strict=False):
            if bound is not None:
                value = torch.tensor(bound, dtype=like.dtype, device=like.device)
                constant = add_constant(module, "bound", value)
                outside = module.graph.call_function(beyond, (result, bound))
                result = module.graph.call_function(aten.where.self, (outside, constant, result))
    clamp.replace_all_uses_with(result)
    module.graph.erase_node(clamp)


def _exported(program: torch.export.ExportedProgram, *args: Any, **options: Any) -> Any:
    """``torch.onnx.export`` without what our graph does not need; cases:

    1. its decomposition, a quarter of the time: the graph consists of simple operators already;
    2. its conversions of 16 bit to float32 and back around sums and comparisons, which our graph
       has where it wants them; with them, if an operator needs others;
    3. an operator that has no ONNX form as it is: with both.
    """
    as_it_is = patch.object(
        torch.export.ExportedProgram, "run_decompositions", lambda self, *_: self
    )
    # What is wrong is told by the second attempt.
    with as_it_is, _as_typed(program), suppress(torch.onnx.OnnxExporterError):
        return torch.onnx.export(program, *args, **options)
    return torch.onnx.export(program, *args, **options)


def _as_typed(program: torch.export.ExportedProgram) -> AbstractContextManager[object]:
    """Without the exporter's conversions, where the graph needs none and torch has them there."""
    if not (_computes_in_16_bit(program) and _settles_types(program)):
        return nullcontext()
    name = "insert_type_promotion_nodes"
    try:  # names of torch's own, which may change
        passes = importlib.import_module("torch.onnx._internal.exporter._fx_passes")
    except ImportError:
        return nullcontext()
    return patch.object(passes, name) if hasattr(passes, name) else nullcontext()


def _computes_in_16_bit(program: torch.export.ExportedProgram) -> bool:
    values = (node.meta.get("val") for node in program.graph.nodes)
    short = torch.float16, torch.bfloat16
    return any(isinstance(value, Tensor) and value.dtype in short for value in values)


_ARITHMETIC = (aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor)
# Operators that read whole numbers or truth values beside what they compute with.
_CHOOSE = re.compile(r"where|gather|scatter|index|take|embedding|pool|_to_copy")


def _settles_types(program: torch.export.ExportedProgram) -> bool:
    """Make whole numbers beside tensors of decimals decimals, in place.

    Returns:
        Whether no operator is left that reads several types, or makes decimals of whole numbers.
    """
    for node in program.graph.nodes:
        if node.op != "call_function" or _CHOOSE.search(str(node.target)) or "dtype" in node.kwargs:
            continue
        made = node.meta.get("val")
        values = [source.meta.get("val") for source in node.all_input_nodes]
        types = {value.dtype for value in values if isinstance(value, Tensor)}
        whole = isinstance(made, Tensor) and made.is_floating_point() and made.dtype not in types
        if len(types) > 1 or (types and whole):
            return False
        if node.target in _ARITHMETIC and next(iter(types)).is_floating_point:
            node.args = tuple(float(a) if type(a) is int else a for a in node.args)
    return True


# A protobuf is limited to 2 GB, including the graph itself.
EMBEDDED_BYTES = 1_900_000_000


def write_onnx(
    joint: JointGraph,
    path: Path,
    metadata: str,
    opset: int = DEFAULT_OPSET,
    weights: str = "float32",
    runtime: str = DEFAULT_RUNTIME,
) -> None:
    """Write an ONNX file with a dynamic batch, and ``metadata`` under the key ``combicam``.

    Its operators are those that ``runtime`` likes, see :mod:`combicam.export.formats.runtimes`. If
    weights exceed the 2 GB limit of a protobuf, they are written to ``<name>.data`` beside it.

    Raises:
        TraceError: an operator cannot be exported to ONNX, or to this opset.
    """
    graph, inputs = for_onnx(joint.module, runtime), example_inputs(joint)
    write_onnx_graph(graph, inputs, joint.output_names, path, metadata, opset, weights, runtime)


def write_onnx_graph(
    graph: fx.GraphModule,
    inputs: tuple[Tensor, ...],
    output_names: Sequence[str],
    path: Path,
    metadata: str = "",
    opset: int = DEFAULT_OPSET,
    weights: str = "float32",
    runtime: str = DEFAULT_RUNTIME,
) -> None:
    """Write a graph of images, or of images and targets; see :func:`write_onnx`.

    Args:
        graph: portable; its inputs have the same dynamic batch.
        inputs: examples.
        output_names: of the file.
        path: of the file.
        metadata: kept in it under the key ``combicam``.
        opset: of the file, see :mod:`combicam.export.formats.onnx_opset`.
        weights: how they are stored, ``float32`` or ``float16``.
        runtime: which will run the file.
    """
    from combicam.export.formats.onnx_operators import TRANSLATIONS  # slow to import

    batch = torch.export.Dim("batch")
    names = ["images", "targets"][: len(inputs)]
    module = _prepared(fx.GraphModule(graph, copy.deepcopy(graph.graph)))
    run = LabelledInterpreter(module).run  # so that an error can name the model's module

    def of_images(images: Tensor) -> Any:
        return run(images)

    def of_both(images: Tensor, targets: Tensor) -> Any:
        return run(images, targets)

    module.forward = of_images if len(inputs) == 1 else of_both
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(
                module, inputs, dynamic_shapes=tuple({0: batch} for _ in inputs), strict=False
            )
            exported = _exported(
                program,
                inputs,
                dynamo=True,
                input_names=names,
                output_names=list(output_names),
                custom_translation_table=TRANSLATIONS,
                opset_version=max(opset, DEFAULT_OPSET),
                optimize=True,
                verbose=False,
            )
    except Exception as error:
        name, why = culprit(graph, error), first_line(error.__cause__ or error)
        what = f"ONNX has no form of {name}" if name else f"ONNX cannot express the graph ({why})"
        raise TraceError(
            f"export: {what}; replace that operator, or export to .ts or .pt2"
        ) from error
    assert exported is not None
    check_written(exported.model, max(opset, DEFAULT_OPSET))
    if opset < DEFAULT_OPSET:
        lower_opset(exported.model, opset)
    share_weights(exported.model, computes=RUNTIMES[runtime].computes_weights)
    if weights == "float16":
        halve_weights(exported.model)
    for node in exported.model.graph:  # the exporter's notes, longer than all else in small files
        node.metadata_props.clear()
    exported.model.metadata_props[METADATA_KEY] = metadata
    values = exported.model.graph.initializers.values()
    size = sum(value.const_value.nbytes for value in values if value.const_value is not None)
    exported.save(str(path), external_data=size > EMBEDDED_BYTES)
    onnx.checker.check_model(str(path), full_check=opset < DEFAULT_OPSET)
