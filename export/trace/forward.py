"""Trace only the forward pass, for the methods without gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor, fx, nn

from combicam.export.passes.passes import clean
from combicam.export.spec import CamSpec
from combicam.export.tokens import LAYOUTS
from combicam.export.trace.output import find_logits
from combicam.export.trace.probe import LayerInfo, capturing
from combicam.export.trace.signature import Signature
from combicam.export.trace.snapshot import model_state
from combicam.export.trace.trace import plan


@dataclass(frozen=True)
class ForwardGraph:
    """A model as two graphs with shared weights; the batch of both is symbolic.

    Attributes:
        with_layers: images [B,C,H,W] -> logits float32 [B,n], and per layer [B,C,h,w].
        logits: images -> logits, so that activations are freed early.
        ablated: images, channel int64 [B,1] -> logits, where that channel of the target layers is
            zero; channels are counted through all layers. Only for ``ablationcam``.
        layers: the target layers, in the order of the activations.
        signature: of the inputs.
        largest: bytes of the largest tensor inside, per image.
    """

    with_layers: fx.GraphModule
    logits: fx.GraphModule
    layers: tuple[LayerInfo, ...]
    signature: Signature
    largest: int
    ablated: fx.GraphModule | None = None


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
    from combicam.export.trace.symbolic import to_graph  # slow to import, see trace

    layers, signature = plan(model, spec, input_size, "none", channels)
    graphs = []
    for kept in (layers, ()):
        forward = partial(_forward_function, layers=kept, signature=signature)
        graphs.append(clean(to_graph(forward, model, spec, signature)))
    ablated = None
    if spec.method == "ablationcam":
        function = partial(_ablated_function, layers=layers, signature=signature)
        one = replace(signature, target_input="classes")  # an input int64 [B,1]
        ablated = clean(to_graph(function, model, replace(spec, targets=1), one))
    return ForwardGraph(graphs[0], graphs[1], layers, signature, _largest(graphs[1]), ablated)


def _ablated_function(
    model: nn.Module, layers: tuple[LayerInfo, ...], signature: Signature
) -> Callable[..., list[Tensor]]:
    """The function to trace, of the model's state, the images and the channel of each."""
    dtype = getattr(torch, signature.dtype)
    names = list(model_state(model))
    infos = {info.name: info for info in layers}
    ends = list(accumulate(info.channels for info in layers))
    starts = dict(zip(infos, [0, *ends], strict=False))

    def forward(*flat: Tensor) -> list[Tensor]:
        images, channel = flat[len(names) :]

        def without(name: str, output: Tensor) -> Tensor:
            every = torch.arange(infos[name].channels, device=output.device) + starts[name]
            hit = every == channel  # [B,C]
            ones = [1] * (output.ndim - 2)
            is_first = infos[name].layout == LAYOUTS[0]
            hit = (
                hit.view(-1, every.numel(), *ones) if is_first else hit.view(-1, *ones, len(every))
            )
            return torch.where(hit, torch.zeros_like(output), output)

        state = dict(zip(names, flat, strict=False))
        with torch.no_grad(), capturing(model, list(infos), {}, without):
            output = torch.func.functional_call(model, state, (images.to(dtype),))
        return [find_logits(output).float()]

    return forward


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
