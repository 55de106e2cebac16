"""Trace a function of a model on fake tensors, for any number of images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
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
from combicam.export.spec import CamSpec
from combicam.export.trace.batch_targets import batch_targets
from combicam.export.trace.checkpointing import plain_forward
from combicam.export.trace.decompositions import decompositions
from combicam.export.trace.functionalise import functionalise
from combicam.export.trace.interpolate import SymbolicInterpolate
from combicam.export.trace.origins import FixedBatch, Origins
from combicam.export.trace.signature import Signature
from combicam.export.trace.snapshot import another, memory_format, model_state
from combicam.export.trace.traced_operators import PlainOperators
from combicam.export.trace.twice_differentiable import TwiceDifferentiable
from combicam.export.trace.watch import reason

# An arbitrary size that nothing else in a model is likely to have.
TRACE_BATCH = 11


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
