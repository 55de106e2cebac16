"""Fold zero padding into the convolution behind it, and the crop of its backward likewise."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from combicam.export.passes.crop_folding import PIXEL_AXES, crop_of

aten = torch.ops.aten


class PaddingFolding(PassBase):
    """W*pad(x)  ->  W*x with padding, for padding by a constant that is traced as concatenations.

    Cases:
        1. the same number of zeros on both sides, before an ordinary convolution: its own padding
           grows;
        2. other constant padding of pixels: the concatenations of both axes become one ``pad``,
           which ONNX Runtime folds into its convolution, whose padding may differ by side;
        3. a crop of a convolution, as the backward of case 1 has it: the padding of a transposed
           one grows, that of an ordinary one of stride 1 shrinks. Other crops stay.
    """

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        modified = False
        for node in list(graph_module.graph.nodes):
            if node.target is aten.cat.default:
                modified |= _as_pad(graph_module, node)
        graph_module.graph.eliminate_dead_code()
        for node in list(graph_module.graph.nodes):
            if node.target is aten.constant_pad_nd.default:
                modified |= _merge(node)
        graph_module.graph.eliminate_dead_code()
        for node in list(graph_module.graph.nodes):
            if node.target is aten.convolution.default:
                modified |= _crop(graph_module, node) | _grow(node)
        graph_module.graph.eliminate_dead_code()
        return PassResult(graph_module, modified)


def _as_pad(module: fx.GraphModule, cat: fx.Node) -> bool:
    """cat([block, x, block], axis) of one constant  ->  pad."""
    parts, axis = cat.args[0], cat.args[1] if len(cat.args) > 1 else 0
    assert isinstance(parts, list | tuple)
    values = {_block_value(part) for part in parts} - {None}
    inner = [i for i, part in enumerate(parts) if _block_value(part) is None]
    if axis not in PIXEL_AXES or len(values) != 1 or len(inner) != 1 or len(parts) > 3:
        return False
    (at,) = inner
    x = parts[at]
    if not isinstance(x, fx.Node) or cat.meta["val"].ndim != 4:
        return False
    blocks: Any = (parts[:at], parts[at + 1 :])
    sides = [sum(int(block.meta["val"].shape[axis]) for block in side) for side in blocks]
    pads = [*sides, 0, 0] if axis == 3 else [0, 0, *sides]
    with module.graph.inserting_before(cat):
        pad = module.graph.call_function(aten.constant_pad_nd.default, (x, pads, values.pop()))
    pad.meta = dict(cat.meta)
    cat.replace_all_uses_with(pad)
    return True


def _block_value(node: object) -> float | None:
    """The constant of a block that is nothing else."""
    if not isinstance(node, fx.Node) or node.target is not aten.new_full.default:
        return None
    value = node.args[2]
    return float(value) if isinstance(value, int | float) else None


def _merge(outer: fx.Node) -> bool:
    """pad(pad(x))  ->  pad(x), of the same value and different axes."""
    inner = outer.args[0]
    if not isinstance(inner, fx.Node) or inner.target is not aten.constant_pad_nd.default:
        return False
    if inner.args[2:] != outer.args[2:] or len(inner.users) > 1:
        return False
    if len(inner.args[1]) != len(outer.args[1]):  # type: ignore[arg-type]
        return False
    both = list(zip(inner.args[1], outer.args[1], strict=True))  # type: ignore[arg-type]
    if any(a and b for a, b in both):
        return False
    outer.args = (inner.args[0], [a + b for a, b in both], outer.args[2])
    return True


def _grow(conv: fx.Node) -> bool:
    """Case 1."""
    pad = conv.args[0]
    if not isinstance(pad, fx.Node) or pad.target is not aten.constant_pad_nd.default:
        return False
    sides: Any = pad.args[1]
    value = pad.args[2] if len(pad.args) > 2 else 0
    if conv.args[6] or len(sides) != 4 or pad.meta["val"].ndim != 4:
        return False
    left, right, top, bottom = sides
    if value != 0 or left != right or top != bottom:
        return False
    padding = [own + new for own, new in zip(conv.args[4], (top, left), strict=True)]  # type: ignore[arg-type]
    conv.args = (pad.args[0], *conv.args[1:4], padding, *conv.args[5:])
    return True


def _crop(module: fx.GraphModule, conv: fx.Node) -> bool:
    """Case 3."""
    last, starts = crop_of(conv)
    if last is conv:
        return False
    value, wanted = conv.meta["val"], last.meta["val"]
    arguments: Any = conv.args
    stride, padding, dilation, extra = (list(arguments[i]) for i in (3, 4, 5, 7))
    transposed = bool(conv.args[6])
    for i, axis in enumerate(PIXEL_AXES):
        # Both ends lose the start; what is missing at the end then, a transposed one can append.
        size = int(value.shape[axis]) - extra[i] - 2 * starts[i]
        padding[i] += starts[i] if transposed else -starts[i]
        extra[i] = int(wanted.shape[axis]) - size
        fits = 0 <= extra[i] < max(stride[i], dilation[i]) if transposed else extra[i] == 0
        if not fits or padding[i] < 0 or (not transposed and stride[i] != 1):
            return False
    with module.graph.inserting_before(conv):
        cropped = module.graph.call_function(
            aten.convolution.default,
            (*conv.args[:3], stride, padding, dilation, transposed, extra, conv.args[8]),
        )
    cropped.meta = dict(last.meta)
    last.replace_all_uses_with(cropped)
    return True
