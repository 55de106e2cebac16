"""Trace a CNN into one graph that returns scores and class activation maps."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import (
    DimDynamic,
    ShapeEnv,
    StatelessSymbolicContext,
)
from torch.nn.attention import SDPBackend, sdpa_kernel

from combicam.errors import TraceError
from combicam.export.passes.constants import add_constant
from combicam.export.passes.passes import clean, lower
from combicam.export.spec import FORWARD_METHODS, CamSpec, check_choice
from combicam.export.trace.batch_targets import BatchElsewhere, batch_targets, gradients
from combicam.export.trace.checkpointing import plain_forward
from combicam.export.trace.decompositions import decompositions
from combicam.export.trace.functionalise import functionalise
from combicam.export.trace.interpolate import SymbolicInterpolate
from combicam.export.trace.layers import select_layers
from combicam.export.trace.output import find_logits
from combicam.export.trace.probe import LayerInfo, capturing, probe
from combicam.export.trace.scores import (
    best_classes,
    enlarged,
    fitting_score,
    log_odds,
    target_scores,
)
from combicam.export.trace.snapshot import another, memory_format
from combicam.export.trace.traced_operators import PlainOperators
from combicam.export.trace.watch import reason
from combicam.kernels.cam_head import cam_head

TARGET_INPUTS = ("none", "classes", "weights")
DTYPES = ("float32", "bfloat16", "float16", "float64")
OUTPUTS = ("logits", "classes", "scores", "heatmaps", "ranges")
# An arbitrary size that nothing else in a model is likely to have.
TRACE_BATCH = 11


@dataclass(frozen=True)
class Signature:
    """The inputs of a joint graph.

    Attributes:
        input_size: (H, W) of ``images``, float [B,C,H,W], normalised.
        classes: n, number of logits.
        dtype: of the computation, one of ``DTYPES``; inputs and outputs are float32.
        target_input: ``none``: the graph explains its K best classes; ``classes``: a second input
            ``targets`` int64 [B,K] names them, -1 the best, -2 the second best, and so on (see
            :func:`~combicam.export.trace.scores.explained_classes`); ``weights``: ``targets`` is
            float32 [B,K,n], one weight per class: a region, or with weights of both signs a
            contrast (see :func:`~combicam.export.trace.scores.target_scores`).
        channels: C of the images.

    Raises:
        ValueError: an unknown dtype or target_input.
    """

    input_size: tuple[int, int]
    classes: int
    dtype: str = "float32"
    target_input: str = "classes"
    channels: int = 3

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return (self.channels, *self.input_size)

    def __post_init__(self) -> None:
        check_target_input(self.target_input)
        check_choice("trace", "dtype", self.dtype, DTYPES)


def check_target_input(target_input: str) -> None:
    """Check that a graph can have this target input.

    Raises:
        ValueError: it is not one of ``TARGET_INPUTS``.
    """
    check_choice("trace", "target_input", target_input, TARGET_INPUTS)


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
        """The same graph with only standard operators, for artifacts."""
        return replace(self, module=lower(self.module))


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
    check_target_input(target_input)  # before the model is run
    if spec.method in FORWARD_METHODS:
        raise TraceError(
            f"trace: expected a method with gradients, got {spec.method!r}, which runs the model "
            "once per channel of every layer, on images masked by that channel, and cannot be "
            "a single graph in a file; explain with an Explainer of the model "
            "(backend 'eager' or 'compile'), or export another method"
        )
    layers, signature = plan(model, spec, input_size, target_input, channels)
    spec = replace(spec, score=fitting_score(spec.score, signature.classes))
    for together in (True, False) if batched and spec.targets > 1 else (False,):
        traced = another(model)  # modules may keep tensors of their first call
        joint = joint_function(traced, spec, layers, signature, keep_layers, batched=together)
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
    layers = select_layers(model, probed, spec.layers)
    if spec.targets > probed.classes:
        raise TraceError(
            f"trace: expected targets <= {probed.classes} (the classes), got {spec.targets}"
        )
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
    names = [info.name for info in layers]
    dtype = getattr(torch, signature.dtype)
    state_names = list(model_state(model))

    def joint(*flat: Tensor) -> list[Tensor]:
        images, *given = flat[len(state_names) :]
        targets = given[0] if given else None
        acts: dict[str, Tensor] = {}
        state = dict(zip(state_names, flat, strict=False))
        with torch.enable_grad():
            with capturing(model, names, acts):
                logits = find_logits(torch.func.functional_call(model, state, (images.to(dtype),)))
            logits = logits.float()
            _, chosen, scores = target_scores(
                logits, targets, spec.score, signature.target_input, spec.targets
            )
            by_weights = signature.target_input == "weights"
            fixed = targets if targets is not None and by_weights else chosen
            y, scale = log_odds(logits, fixed, spec.score, signature.target_input)  # both [B,K]
            if dtype == torch.float16:
                y, scale = enlarged(y, scale, logits)
            grads = gradients(y, logits, [acts[name] for name in names], batched)
        with torch.no_grad():
            heatmaps, ranges, *maps = head(
                [info.as_grid(acts[info.name].detach()) for info in layers],
                [info.as_grid(grad) for info, grad in zip(layers, grads, strict=True)],
                list(signature.input_size),
                spec.method,
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
        return [logits.detach(), chosen, scores.detach(), heatmaps, ranges, *maps]

    return joint


def model_state(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, in the order of a joint function's arguments."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def to_graph(
    joint: Callable[..., list[Tensor]], model: nn.Module, spec: CamSpec, signature: Signature
) -> fx.GraphModule:
    """Trace on fake tensors with a symbolic batch; weights become buffers of the graph."""
    state = model_state(model)
    device = next(iter(state.values())).device if state else torch.device("cpu")
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)

    def fake(example: Tensor) -> Tensor:
        dynamic = [DimDynamic.DYNAMIC] + [DimDynamic.STATIC] * (example.ndim - 1)
        context: Any = StatelessSymbolicContext(dynamic_sizes=dynamic)
        return mode.from_tensor(example, symbolic_context=context)

    example = torch.zeros(TRACE_BATCH, *signature.image_shape, device=device)
    images = fake(example.contiguous(memory_format=memory_format(model)))
    flat: list[Tensor] = [mode.from_tensor(t.detach(), static_shapes=True) for t in state.values()]
    flat.append(images)
    if signature.target_input != "none":
        shape = [TRACE_BATCH, spec.targets]
        dtype = torch.int64
        if signature.target_input == "weights":
            shape, dtype = [*shape, signature.classes], torch.float32
        flat.append(fake(torch.zeros(shape, dtype=dtype, device=device)))
    try:
        with mode, torch.inference_mode(False), plain_forward(device), _traceable():
            module = make_fx(joint, decomposition_table=decompositions())(*flat)
            module = functionalise(module, flat)
            _check_unchanged(module, model, list(state))
            module = batch_targets(module, flat, spec.targets)
    except (BatchElsewhere, TraceError):
        raise
    except Exception as error:
        raise TraceError(
            f"trace: {type(model).__name__} could not be traced ({reason(error)})"
        ) from error
    batch: Any = images.shape[0]
    assert mode.shape_env is not None
    if isinstance(batch, int) or mode.shape_env.replace(batch.node.expr).is_number:
        raise TraceError(
            f"trace: {type(model).__name__} fixes the batch size (something in it depends on the "
            "number of images); make every operation of its forward independent of the batch"
        )
    return _bind(module, state)


def _check_unchanged(module: fx.GraphModule, model: nn.Module, names: list[str]) -> None:
    """Check that no weight or buffer is written to."""
    inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
    known = dict(zip(inputs, names, strict=False))
    for node in module.graph.nodes:
        if node.target is torch.ops.aten.copy_.default and node.args[0] in known:
            owner, _, buffer = known[node.args[0]].rpartition(".")
            kind = type(model.get_submodule(owner)).__name__
            raise TraceError(
                f"trace: module {owner!r} ({kind}) changes its {buffer!r} in eval mode, as batch "
                "normalisation does in training, where it mixes the images of a batch; let it "
                "follow model.eval()"
            )


@contextmanager
def _traceable() -> Iterator[None]:
    """Use forms of operators with a symbolic batch and a backward, which all formats support."""
    with sdpa_kernel(SDPBackend.MATH), SymbolicInterpolate(), PlainOperators():
        yield


def _bind(module: fx.GraphModule, state: dict[str, Tensor]) -> fx.GraphModule:
    """Replace the inputs for weights by buffers, and name the remaining inputs."""
    placeholders = [n for n in module.graph.nodes if n.op == "placeholder"]
    for node, (name, tensor) in zip(placeholders[: len(state)], state.items(), strict=True):
        with module.graph.inserting_before(node):
            constant = add_constant(module, "w_" + name.replace(".", "_"), tensor.detach())
        constant.meta = dict(node.meta)
        node.replace_all_uses_with(constant)
        module.graph.erase_node(node)
    rest: list[Any] = placeholders[len(state) :]
    for node, name in zip(rest, ("images", "targets"), strict=False):
        node.name = node.target = name
    module.recompile()
    return module
