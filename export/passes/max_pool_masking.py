"""Write the backward of max pooling without indices, for runtimes whose pools have none."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, fx
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from combicam.export.passes.inlining import inline

aten = torch.ops.aten


class MaxPoolMasking(PassBase):
    """max_pool_backward(g, x, indices)  ->  sum over the offsets of a window of g where x is its
    first maximum there.

    The pool itself becomes one without indices. Cases:

    1. windows that tile x: the parts are interleaved;
    2. windows that overlap or leave gaps: a transposed convolution with one-hot weights adds them;
    3. pools of one or three axes: not changed.
    """

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        graph, modified = graph_module.graph, False
        for node in list(graph.nodes):
            if node.target is aten.max_pool2d_with_indices_backward.default:
                inline(graph_module, node, masked_max_backward)
                modified = True
        graph.eliminate_dead_code()
        for node in list(graph.nodes):
            if node.target is not aten.max_pool2d_with_indices.default:
                continue
            if any(user.target is not operator.getitem or user.args[1] for user in node.users):
                continue  # somebody needs the indices
            with graph.inserting_before(node):
                pool = graph.call_function(aten.max_pool2d.default, node.args, node.kwargs)
            pool.meta = {**node.meta, "val": node.meta["val"][0]}
            for user in list(node.users):
                user.replace_all_uses_with(pool)
                graph.erase_node(user)
            graph.erase_node(node)
            modified = True
        return PassResult(graph_module, modified)


def masked_max_backward(
    grad: Tensor,
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
    indices: Tensor,
) -> Tensor:
    """The gradient of x [B,C,h,w] from that of its maxima; of equal maxima, the first has it."""
    options = [_pair(value) for value in (kernel, stride or kernel, padding, dilation)]
    kernel, stride, padding, dilation = options
    maxima = aten.max_pool2d_with_indices.default(x, *options, ceil_mode)[0]
    size, grid = ([int(n) for n in t.shape[2:]] for t in (x, maxima))  # only the batch varies
    # The last window may begin inside and end outside of the padded x.
    reach = [
        (n - 1) * s + d * (k - 1) + 1
        for n, s, d, k in zip(grid, stride, dilation, kernel, strict=True)
    ]
    after = [max(0, r - p - n) for r, p, n in zip(reach, padding, size, strict=True)]
    lowest = torch.finfo(x.dtype).min
    edges = list(zip(padding, after, strict=True))
    padded = _padded(x, edges, lowest)
    parts = list(_parts(grad, padded, maxima, kernel, stride, dilation))
    if list(kernel) == list(stride) and not any(map(any, edges)) and reach == size:  # case 1
        return _interleaved(parts, kernel, size)
    return _added(parts, kernel, stride, dilation, padding, size)


def _padded(x: Tensor, edges: Sequence[tuple[int, int]], value: float) -> Tensor:
    """x [B,C,h,w] with rows and columns before and behind it. aten's own would fix the batch."""
    for axis, counts in enumerate(edges, 2):
        line = torch.full_like(aten.slice.Tensor(x, axis, 0, 1), value)
        shapes = ([-1, -1, *(n if a == axis else -1 for a in (2, 3))] for n in counts)
        before, behind = (
            [line.expand(s)] if n else [] for s, n in zip(shapes, counts, strict=True)
        )
        if before or behind:
            x = torch.cat([*before, x, *behind], axis)
    return x


def _pair(value: int | Sequence[int]) -> list[int]:
    numbers = [value] if isinstance(value, int) else list(value)
    return numbers if len(numbers) == 2 else numbers * 2


def _parts(
    grad: Tensor,
    padded: Tensor,
    maxima: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
) -> Iterator[Tensor]:
    """For every offset of a window, the gradient where the first maximum is there, else zero."""
    zero, free = grad.new_zeros(()), None
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            seen = padded
            for axis, offset in ((2, i * dilation[0]), (3, j * dilation[1])):
                step, count = stride[axis - 2], int(maxima.shape[axis])
                end = offset + step * (count - 1) + 1
                seen = aten.slice.Tensor(seen, axis, offset, end, step)
            here = seen == maxima
            first = here if free is None else here & free
            free = ~here if free is None else free & ~here
            yield torch.where(first, grad, zero)


def _interleaved(parts: Sequence[Tensor], kernel: Sequence[int], size: Sequence[int]) -> Tensor:
    """k0 k1 tensors [B,C,h,w] -> [B,C,k0 h,k1 w]."""
    rows = [
        torch.stack(list(parts[i : i + kernel[1]]), -1) for i in range(0, len(parts), kernel[1])
    ]
    channels, height = (int(n) for n in parts[0].shape[1:3])
    wide = [row.view(-1, channels, height, size[1]) for row in rows]
    return torch.stack(wide, -2).view(-1, channels, *size)


def _added(
    parts: Sequence[Tensor],
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int],
    size: Sequence[int],
) -> Tensor:
    """k0 k1 tensors [B,C,h,w], added at their offsets in [B,C,H,W]."""
    count, (channels, height, width) = len(parts), (int(n) for n in parts[0].shape[1:])
    planes = torch.stack(list(parts), 2).view(-1, count, height, width)
    one_hot = torch.eye(count, dtype=planes.dtype, device=planes.device)
    weight = one_hot.reshape(count, 1, *kernel)
    options = list(stride), [0, 0], list(dilation), True, [0, 0], 1
    spread = aten.convolution.default(planes, weight, None, *options)
    missing = [p + n - int(m) for p, n, m in zip(padding, size, spread.shape[2:], strict=True)]
    spread = _padded(spread, [(0, max(0, n)) for n in missing], 0.0)
    for axis in (2, 3):
        first = padding[axis - 2]
        spread = aten.slice.Tensor(spread, axis, first, first + size[axis - 2])
    return spread.contiguous().view(-1, channels, *size)
