"""Write the crop of a convolution as padding that differs by side, as ONNX allows and torch not."""

from __future__ import annotations

from typing import Any

from torch import fx
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from combicam.export.passes.blocked_layout import aten, ours

PIXEL_AXES = (2, 3)


class CropFolding(PassBase):
    """crop(W*x)  ->  W*x with less at its sides, for crops that differ by side.

    The gradient of a convolution behind uneven padding ("same" in TensorFlow's sense) has them.
    Cases:

    1. a transposed convolution: its padding grows by the crop;
    2. an ordinary one of stride 1: its padding shrinks, unless the crop is larger;
    3. crops with steps, of other axes or of one side that something else reads: not changed.
    """

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        graph, modified = graph_module.graph, False
        for conv in list(graph.nodes):
            if conv.target is not aten.convolution.default or conv.meta["val"].ndim != 4:
                continue
            last, starts = crop_of(conv)
            padding = _padding(conv, last, starts)
            if last is conv or padding is None:
                continue
            x, weight, bias, stride, _, dilation, transposed, extra, groups = _arguments(conv)
            with graph.inserting_before(conv):
                cropped = graph.call_function(
                    ours.convolution.default,
                    (x, weight, bias, stride, padding, dilation, transposed, extra, groups),
                )
            cropped.meta = dict(last.meta)
            last.replace_all_uses_with(cropped)
            modified = True
        graph.eliminate_dead_code()
        return PassResult(graph_module, modified)


def crop_of(conv: fx.Node) -> tuple[fx.Node, list[int]]:
    """The last slice of pixels behind a convolution (itself if none), and where the crop starts."""
    last, starts = conv, [0, 0]
    while len(last.users) == 1:
        user = next(iter(last.users))
        axis = user.args[1] if len(user.args) > 1 else 0
        step = user.args[4] if len(user.args) > 4 else 1
        if user.target is not aten.slice.Tensor or axis not in PIXEL_AXES or step != 1:
            break
        start = user.args[2] if len(user.args) > 2 else 0
        if not isinstance(start, int) or start < 0:
            break
        starts[PIXEL_AXES.index(axis)] += start
        last = user
    return last, starts


def _arguments(node: fx.Node) -> tuple[Any, ...]:
    return node.args


def _padding(conv: fx.Node, last: fx.Node, starts: list[int]) -> list[int] | None:
    """[top, left, bottom, right] of the cropped convolution; None if it has none."""
    whole, wanted = conv.meta["val"], last.meta["val"]
    _, _, _, stride, padding, _, transposed, *_ = _arguments(conv)
    begin, end = list(padding), list(padding)
    for i, axis in enumerate(PIXEL_AXES):
        behind = int(whole.shape[axis]) - int(wanted.shape[axis]) - starts[i]
        begin[i] += starts[i] if transposed else -starts[i]
        end[i] += behind if transposed else -behind
        if min(begin[i], end[i]) < 0 or (not transposed and stride[i] != 1):
            return None
    return begin + end
