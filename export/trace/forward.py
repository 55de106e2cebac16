"""Trace only the forward pass, for the method without gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from combicam.export.passes.passes import clean
from combicam.export.spec import CamSpec
from combicam.export.trace.output import find_logits
from combicam.export.trace.probe import LayerInfo, capturing
from combicam.export.trace.snapshot import another
from combicam.export.trace.trace import Signature, model_state, plan, to_graph


@dataclass(frozen=True)
class ForwardGraph:
    """A model as two graphs with shared weights; the batch of both is symbolic.

    Attributes:
        with_layers: images [B,C,H,W] -> logits float32 [B,n], and per layer [B,C,h,w].
        logits: images -> logits, so that activations are freed early.
        layers: the target layers, in the order of the activations.
        signature: of the inputs.
        largest: bytes of the largest tensor inside, per image.
    """

    with_layers: fx.GraphModule
    logits: fx.GraphModule
    layers: tuple[LayerInfo, ...]
    signature: Signature
    largest: int


def trace_forward(
    model: nn.Module, spec: CamSpec, input_size: tuple[int, int], channels: int = 3
) -> ForwardGraph:
    """Trace the forward pass, once with the target layers among its outputs and once without.

    Args:
        model: in eval mode with frozen parameters (see :func:`~combicam.export.trace.snapshot`).
        spec: its layers are used.
        input_size: (H, W), pixels.
        channels: C of the images.

    Raises:
        LayerError, TraceError: see :func:`~combicam.export.trace.trace.trace`.
    """
    layers, signature = plan(model, spec, input_size, "none", channels)
    graphs = []
    for kept in (layers, ()):
        forward = _forward_function(another(model), kept, signature)
        graphs.append(clean(to_graph(forward, model, spec, signature)))
    return ForwardGraph(graphs[0], graphs[1], layers, signature, _largest(graphs[1]))


def _forward_function(
    model: nn.Module, layers: tuple[LayerInfo, ...], signature: Signature
) -> Callable[..., list[Tensor]]:
    """The function to trace, of the model's state and the images."""
    dtype = getattr(torch, signature.dtype)
    names = list(model_state(model))

    def forward(*flat: Tensor) -> list[Tensor]:
        acts: dict[str, Tensor] = {}
        state = dict(zip(names, flat, strict=False))
        with torch.no_grad(), capturing(model, [info.name for info in layers], acts):
            images = flat[-1].to(dtype)
            logits = find_logits(torch.func.functional_call(model, state, (images,)))
            return [logits.float(), *(info.as_grid(acts[info.name].detach()) for info in layers)]

    return forward


def _largest(module: fx.GraphModule) -> int:
    """Bytes of the largest tensor with a batch dimension, per image."""
    sizes = [1]
    for node in module.graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, Tensor) and value.ndim and isinstance(value.shape[0], torch.SymInt):
            sizes.append(value[0].numel() * value.element_size())
    return max(int(size) for size in sizes)
