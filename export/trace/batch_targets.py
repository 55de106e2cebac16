"""Batch the backward of K targets into one backward of B K cotangents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import SymInt, Tensor, fx

from combicam.errors import TraceError, first_line
from combicam.export.trace.origins import LabelledInterpreter, retrace


class BatchElsewhere(TraceError):
    """Several targets need a backward each, as with the batch of a tensor in another dimension."""


@torch.library.custom_op("combicam::seed", mutates_args=())
def _seed(cotangents: Tensor) -> Tensor:
    return cotangents[:, 0].clone()


@_seed.register_fake
def _(cotangents: Tensor) -> Tensor:
    return cotangents[:, 0].clone()


@torch.library.custom_op("combicam::harvest", mutates_args=())
def _harvest(gradient: Tensor, targets: int) -> Tensor:
    return torch.stack([gradient] * targets, 1)


@_harvest.register_fake
def _(gradient: Tensor, targets: int) -> Tensor:
    return torch.stack([gradient] * targets, 1)


aten = torch.ops.aten
NUMBERINGS = frozenset(
    {
        *(getattr(aten.arange, o) for o in aten.arange.overloads()),
        torch.ops.prims.iota.default,
        aten.linspace.default,
    }
)
SEED, HARVEST = torch.ops.combicam.seed.default, torch.ops.combicam.harvest.default


def gradients(
    y: Tensor, logits: Tensor, acts: Sequence[Tensor], batched: bool = False
) -> list[Tensor]:
    """d y[b,k] / d act[b] per layer, [B,K,...]; images of a batch do not mix in eval mode.

    Args:
        y: scores [B,K], of ``logits`` alone.
        logits: [B,n], of ``acts``.
        acts: per layer [B,...].
        batched: trace the backward from the logits only once, as if for the first target, between
            the marks for ``batch_targets``; otherwise once per target.
    """
    targets = y.shape[1]
    if targets == 1:
        return [g.unsqueeze(1) for g in torch.autograd.grad(y.sum(), acts)]
    if not batched:
        each = [torch.autograd.grad(column, acts, retain_graph=True) for column in y.sum(0)]
        return [torch.stack(grads, 1) for grads in zip(*each, strict=True)]
    columns = [torch.autograd.grad(c, logits, retain_graph=True)[0] for c in y.sum(0)]
    found = torch.autograd.grad(logits, acts, SEED(torch.stack(columns, 1)))  # [B,K,n] -> [B,n]
    return [HARVEST(gradient, targets) for gradient in found]


def batch_targets(module: fx.GraphModule, inputs: Sequence[Tensor], targets: int) -> fx.GraphModule:
    """Trace again with a batch of B K between seed and harvest, images first.

    Without these marks the graph is not changed.

    1. seed(c [B,K,n])               ->  c as [B K,n]
    2. f(g, x), g from the seed, x not  ->  f(g, x repeated K times per image)
    3. harvest(g [B K,...])          ->  g as [B,K,...]

    This is correct because in eval mode no operator of the backward mixes images.

    Args:
        module: a flat graph of operators without mutations, with the marks of ``gradients``.
        inputs: fake tensors, as for the first trace.
        targets: K.

    Raises:
        BatchElsewhere: the backward reads a value of the forward whose batch is not in the first
            dimension.
    """
    if not any(node.target is SEED for node in module.graph.nodes):
        return module
    try:
        return retrace(_Batched(module, targets).run, inputs)
    except Exception as error:  # such as an operator that takes no product of symbols for a size
        raise BatchElsewhere(f"trace: no backward of B K images ({first_line(error)})") from error


def _is_numbering(node: fx.Node) -> bool:
    """Whether a node makes a number per image, as ``torch.arange(len(images))`` does."""
    value = node.meta.get("val")
    return node.target in NUMBERINGS and isinstance(value.shape[0], SymInt)  # type: ignore[union-attr]


class _Batched(LabelledInterpreter):
    def __init__(self, module: fx.GraphModule, targets: int) -> None:
        super().__init__(module)
        self.batch: Any = None  # that of the seed
        self.targets = targets
        self.backward: set[fx.Node] = set()
        self.repeats: dict[fx.Node, Any] = {}
        self.numbers: set[fx.Node] = set()  # values made of the images' numbers, 0 to B - 1

    def compute(self, n: fx.Node) -> Any:
        if _is_numbering(n) or not self.numbers.isdisjoint(n.all_input_nodes):
            self.numbers.add(n)
        if n.target is SEED:
            self.backward.add(n)
            cotangents = self.env[n.args[0]]  # type: ignore[index]
            self.batch = cotangents.shape[0]
            return cotangents.flatten(0, 1)
        if n.target is HARVEST:
            gradient = self.env[n.args[0]]  # type: ignore[index]
            return gradient.unflatten(0, (self.batch, self.targets))
        if n.op != "call_function" or self.backward.isdisjoint(n.all_input_nodes):
            return super().compute(n)
        self.backward.add(n)
        args = fx.node.map_arg(n.args, self._repeated)
        kwargs = fx.node.map_arg(n.kwargs, self._repeated)
        return n.target(*args, **kwargs)  # type: ignore[operator]

    def _repeated(self, node: fx.Node) -> Any:
        if node in self.backward:
            return self.env[node]
        if node in self.numbers:  # an index of image b would have to be that of its K rows
            raise BatchElsewhere("trace: expected no numbers of images in the backward")
        if node not in self.repeats:
            self.repeats[node] = self._repeat(self.env[node])
        return self.repeats[node]

    def _repeat(self, value: Any) -> Any:
        if isinstance(value, SymInt):
            return value * self.targets
        if not isinstance(value, Tensor) or not value.ndim:
            return value
        if any(isinstance(size, SymInt) for size in value.shape[1:]):
            raise BatchElsewhere(
                f"trace: expected the batch in the first dimension of {tuple(value.shape)}"
            )
        if not isinstance(value.shape[0], SymInt):
            return value
        if value.ndim == 4 and value.is_contiguous(memory_format=torch.channels_last):
            return self._copies(value.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self._copies(value)

    def _copies(self, value: Tensor) -> Tensor:
        """[B m,...] -> [B K m,...], every image's slice K times in a row."""
        rows = value.unflatten(0, (self.batch, value.shape[0] // self.batch))
        rows = rows[:, None].expand(-1, self.targets, *([-1] * (rows.ndim - 1)))
        return rows.flatten(0, 2)
