"""Trace a CNN into one graph that returns scores and class activation maps."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, fx, nn

from combicam.errors import TraceError
from combicam.export.passes.passes import clean, lower
from combicam.export.spec import FORWARD_METHODS, CamSpec
from combicam.export.trace.batch_targets import BatchElsewhere, gradients
from combicam.export.trace.fullgrad import INPUT, bias_layers, bias_of
from combicam.export.trace.layers import select_layers
from combicam.export.trace.origins import check_portable
from combicam.export.trace.output import find_logits
from combicam.export.trace.probe import LayerInfo, capturing, probe
from combicam.export.trace.scores import (
    LogOdds,
    best_classes,
    enlarged,
    finer_scores,
    fitting_score,
    log_odds,
    similar_classes,
    target_scores,
)
from combicam.export.trace.shapley import shapley_gradients
from combicam.export.trace.signature import Signature, check_target_input
from combicam.export.trace.smooth import for_views, merged, of_images, views_of
from combicam.export.trace.snapshot import model_state
from combicam.kernels.cam_head import cam_head
from combicam.kernels.principal import GRADIENT_FREE

OUTPUTS = ("logits", "classes", "scores", "heatmaps", "ranges")
# Methods that are another one for the head, of other gradients.
HEAD_METHODS = {"shapleycam": "gradcam"}


@dataclass(frozen=True)
class JointGraph:
    """The traced graph: ``images[, targets] -> logits, targets, scores, heatmaps, ranges, maps...``

    Attributes:
        module: the graph; the batch dimension is symbolic, weights are its buffers.
        spec: of the computation.
        layers: the target layers, in the order of the layer maps.
        signature: its inputs.
    """

    module: fx.GraphModule
    spec: CamSpec
    layers: tuple[LayerInfo, ...]
    signature: Signature

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs in order; layer maps are named after their layers."""
        kept = len(self.module.graph.output_node().args[0]) - len(OUTPUTS)  # type: ignore[arg-type]
        return (*OUTPUTS, *(f"map:{info.name}" for info in self.layers[:kept]))

    def portable(self) -> JointGraph:
        """The same graph with only standard operators, for artifacts.

        Raises:
            TraceError: an operator of another library than torch.
        """
        module = lower(self.module)
        check_portable(module)
        return replace(self, module=module)


def check_finer(spec: CamSpec, classes: int, target_input: str) -> None:
    """Check that there are classes, and enough of them, to compare a target with.

    Raises:
        TraceError: fewer, or targets that are weights.
    """
    if not spec.finer:
        return
    if spec.finer >= classes:
        raise TraceError(f"trace: expected finer < {classes} (the other classes), got {spec.finer}")
    if target_input == "weights":
        raise TraceError(
            "trace: expected classes as targets with finer, got region weights, which have no "
            "similar classes; give classes, or an explainer without finer"
        )


def example_inputs(joint: JointGraph, batch: int = 2) -> tuple[Tensor, ...]:
    """Inputs of the right shapes, on the graph's device; classes are left to the graph."""
    signature, count = joint.signature, joint.spec.targets
    device = next((b.device for b in joint.module.buffers()), torch.device("cpu"))
    images = torch.zeros(batch, *signature.image_shape, device=device)
    if signature.target_input == "none":
        return (images,)
    if signature.target_input == "classes":
        return images, best_classes(batch, count, device)
    weights = torch.full((batch, count, signature.classes), 1.0, device=device)
    return images, weights


def trace(
    model: nn.Module,
    spec: CamSpec,
    input_size: tuple[int, int],
    *,
    target_input: str = "classes",
    keep_layers: bool = False,
    batched: bool = True,
    channels: int = 3,
) -> JointGraph:
    """Rewrite a CNN into one graph that returns scores and maps.

    The forward runs once, the K scores are differentiated only with respect to the target layers,
    and ``combicam::cam_head`` turns activations and gradients into heatmaps.

    Args:
        model: in eval mode with frozen parameters (see :func:`~combicam.export.trace.snapshot`).
        spec: what to compute.
        input_size: (H, W), pixels; fixed in the graph, unlike the batch size.
        target_input: see :class:`Signature`.
        keep_layers: return the layer maps, too.
        batched: compute the gradients of K targets in one backward of B K cotangents, if the model
            allows it, instead of K backwards.
        channels: C of the images; fixed, too.

    Raises:
        ValueError: an unknown target_input.
        LayerError: the spec's layers do not exist in the model.
        TraceError: the model cannot be traced, K exceeds its classes, or the method uses no
            gradients.
    """
    # It imports sympy, which files, that are traced already, do not wait for.
    from combicam.export.trace.symbolic import to_graph

    check_target_input(target_input)  # before the model is run
    if spec.method in FORWARD_METHODS:
        raise TraceError(
            f"trace: expected a method with gradients, got {spec.method!r}, which runs the model "
            "once per channel of every layer, masked by that channel or without it, and cannot be "
            "a single graph in a file; explain with an Explainer of the model "
            "(backend 'eager' or 'compile'), or export another method"
        )
    layers, signature = plan(model, spec, input_size, target_input, channels)
    spec = replace(spec, score=fitting_score(spec.score, signature.classes))
    batched = batched and spec.targets > 1 and spec.method != "shapleycam"
    for together in (True, False) if batched else (False,):
        joint = partial(
            joint_function,
            spec=spec,
            layers=layers,
            signature=signature,
            keep_layers=keep_layers,
            batched=together,
        )
        try:
            module = to_graph(joint, model, spec, signature)
            break
        except BatchElsewhere:
            continue
    return JointGraph(clean(module), spec, layers, signature)


def plan(
    model: nn.Module,
    spec: CamSpec,
    input_size: tuple[int, int],
    target_input: str,
    channels: int = 3,
) -> tuple[tuple[LayerInfo, ...], Signature]:
    """The target layers and the inputs of a graph of this model.

    Raises:
        LayerError, TraceError: see :func:`trace`.
    """
    probed = probe(model, input_size, spec.tokens, channels)
    is_full = spec.method == "fullgrad"
    layers = (
        bias_layers(model, probed, channels)
        if is_full
        else select_layers(model, probed, spec.layers)
    )
    if spec.targets > probed.classes:
        raise TraceError(
            f"trace: expected targets <= {probed.classes} (the classes), got {spec.targets}"
        )
    check_finer(spec, probed.classes, target_input)
    if probed.ending:
        kind = "sigmoid" if probed.ending == "Sigmoid" else "logprob"
        warnings.warn(
            f"{type(model).__name__} ends in {probed.ending}: it returns probabilities, which are "
            "taken for logits here, so scores and maps are not those of its training; return what "
            f"it computes before {probed.ending}, and use score={kind!r}",
            UserWarning,
            stacklevel=2,
        )
    if spec.layer_weights and len(spec.layer_weights) != len(layers):
        raise TraceError(
            f"trace: expected one layer weight per layer ({len(layers)}), got "
            f"{len(spec.layer_weights)}"
        )
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    signature = Signature(
        input_size, probed.classes, str(dtype).removeprefix("torch."), target_input, channels
    )
    return layers, signature


def joint_function(
    model: nn.Module,
    spec: CamSpec,
    layers: tuple[LayerInfo, ...],
    signature: Signature,
    keep_layers: bool,
    head: Callable[..., list[Tensor]] = cam_head,
    batched: bool = False,
) -> Callable[..., list[Tensor]]:
    """The function to trace, of the model's state, the images and the targets."""
    names = [info.name for info in layers if info.name != INPUT]
    dtype = getattr(torch, signature.dtype)
    state_names = list(model_state(model))

    def joint(*flat: Tensor) -> list[Tensor]:
        images, *given = flat[len(state_names) :]
        targets = given[0] if given else None
        images = views_of(images, spec.smooth).to(dtype)
        acts: dict[str, Tensor] = {}
        if spec.method == "fullgrad":
            images = images.detach().requires_grad_()
            acts[INPUT] = images
        state = dict(zip(state_names, flat, strict=False))
        with torch.enable_grad():
            with capturing(model, names, acts):
                logits = find_logits(torch.func.functional_call(model, state, (images,)))
            of_views = logits.float()
            logits = of_images(of_views, spec.smooth)
            _, chosen, scores = target_scores(
                logits, targets, spec.score, signature.target_input, spec.targets
            )
            outputs = [acts[info.name] for info in layers]
            if spec.method in GRADIENT_FREE:
                scale = None
                grads = [
                    act[:, None].expand(-1, chosen.shape[1], *act.shape[1:]) for act in outputs
                ]
            else:
                by_weights = signature.target_input == "weights"
                fixed = targets if targets is not None and by_weights else chosen
                fixed = for_views(fixed, spec.smooth)
                odds = differentiable_scores(of_views, fixed, spec, signature.target_input)
                if dtype == torch.float16:
                    odds = enlarged(odds, of_views)
                scale = odds.scale
                if spec.method == "shapleycam":
                    grads = shapley_gradients(odds, of_views, outputs, spec.targets)
                else:
                    grads = gradients(odds.y, of_views, outputs, batched)
        with torch.no_grad():
            for name in names if spec.method == "fullgrad" else ():
                bias = bias_of(model, name, state)[None, :, None, None]
                acts[name] = bias.expand_as(acts[name])
            explained = head(
                [info.as_grid(acts[info.name].detach()) for info in layers],
                [info.as_grid(grad) for info, grad in zip(layers, grads, strict=True)],
                list(signature.input_size),
                HEAD_METHODS.get(spec.method, spec.method),
                spec.fuse,
                spec.normalize,
                spec.align_corners,
                spec.eps,
                list(spec.layer_weights),
                spec.method_eps,
                keep_layers,
                torch.float32,
                scale,
            )
        return [logits.detach(), chosen, scores.detach(), *merged(explained, spec.smooth)]

    return joint


def differentiable_scores(
    logits: Tensor, targets: Tensor, spec: CamSpec, target_input: str
) -> LogOdds:
    """What to differentiate, of classes int64 [B,K] or weights float32 [B,K,n]."""
    if spec.finer:
        similar = similar_classes(logits, targets, spec.finer)
        y, _ = finer_scores(logits, targets, similar, spec)
        return LogOdds([(None, y)])
    return log_odds(logits, targets, spec.score, target_input)
