"""Trace a CNN into one graph that returns scores and class activation maps."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
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
from combicam.export.trace.fullgrad import INPUT, bias_layers, bias_of
from combicam.export.trace.functionalise import functionalise
from combicam.export.trace.interpolate import SymbolicInterpolate
from combicam.export.trace.layers import select_layers
from combicam.export.trace.origins import FixedBatch, Origins, check_portable
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
from combicam.export.trace.smooth import for_views, merged, of_images, views_of
from combicam.export.trace.snapshot import another, memory_format
from combicam.export.trace.traced_operators import PlainOperators
from combicam.export.trace.twice_differentiable import TwiceDifferentiable
from combicam.export.trace.watch import reason
from combicam.kernels.cam_head import cam_head
from combicam.kernels.principal import GRADIENT_FREE

TARGET_INPUTS = ("none", "classes", "weights")
DTYPES = ("float32", "bfloat16", "float16", "float64")
OUTPUTS = ("logits", "classes", "scores", "heatmaps", "ranges")
# Methods that are another one for the head, of other gradients.
HEAD_METHODS = {"shapleycam": "gradcam"}
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


def model_state(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, in the order of a joint function's arguments."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def to_graph(
    function_of: Callable[[nn.Module], Callable[..., list[Tensor]]],
    model: nn.Module,
    spec: CamSpec,
    signature: Signature,
) -> fx.GraphModule:
    """Trace on fake tensors with a symbolic batch; weights become buffers of the graph.

    A call whose C++ form cannot be traced is traced in the form that torch has in Python.

    Args:
        function_of: the function to trace, of a copy of the model.
        model, spec, signature: as of the graph.

    Raises:
        TraceError: a call cannot be traced; the message names it and its module.
    """
    python_forms: set[Callable[..., Any]] = set()
    while True:
        traced = another(model)  # modules may keep tensors of their first call
        flat, batch = _fake_inputs(model, spec, signature)
        origins = Origins(traced, batch, python_forms)
        try:
            module = _traced(function_of(traced), model, spec, flat, origins)
            origins.check_batch()
            return _bind(module, model_state(model))
        except TraceError as error:
            failed, failure = origins.last, error
            if not isinstance(error, FixedBatch):
                raise
        except Exception as error:
            failed = origins.last
            place = f"; {failed}" if failed else ""
            failure = TraceError(
                f"trace: {type(model).__name__} could not be traced ({reason(error)}{place})"
            )
            failure.__cause__ = error
        form = failed and (torch.autograd.grad if failed.is_backward else failed.function)
        if form is None or form in python_forms:
            raise failure
        python_forms.add(form)


def _fake_inputs(
    model: nn.Module, spec: CamSpec, signature: Signature
) -> tuple[list[Tensor], torch.SymInt]:
    """The model's state, images and targets as fake tensors; the symbolic batch."""
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
    batch: Any = images.shape[0]
    return flat, batch


def _traced(
    function: Callable[..., list[Tensor]],
    model: nn.Module,
    spec: CamSpec,
    flat: list[Tensor],
    origins: Origins,
) -> fx.GraphModule:
    """A functional graph of the function, whose inputs include the state."""
    images = flat[len(model_state(model))]

    def followed(*inputs: Tensor) -> list[Tensor]:
        with origins.followed():
            return function(*inputs)

    mode: Any = images.fake_mode  # type: ignore[attr-defined]
    with mode, torch.inference_mode(False), plain_forward(images.device), _traceable(spec):
        module = make_fx(followed, decomposition_table=decompositions())(*flat)
        module = functionalise(module, flat)
        _check_unchanged(module, model, list(model_state(model)))
        return batch_targets(module, flat, spec.targets)


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
def _traceable(spec: CamSpec) -> Iterator[None]:
    """Use forms of operators with a symbolic batch and a backward, which all formats support."""
    twice = TwiceDifferentiable() if spec.method == "shapleycam" else nullcontext()
    with sdpa_kernel(SDPBackend.MATH), SymbolicInterpolate(), PlainOperators(), twice:
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
