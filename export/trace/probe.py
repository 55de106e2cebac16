"""Run the model once on fake tensors, and record what every module returns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from combicam.errors import TraceError, first_line
from combicam.export.spec import check_choice
from combicam.export.tokens import LAYOUTS, Place, as_grid, find_places
from combicam.export.trace.snapshot import another, no_autocast


@dataclass(frozen=True)
class LayerInfo:
    """A module that returned one activation on a grid.

    Attributes:
        name: of the module, as in ``model.named_modules()``.
        kind: its class name.
        channels, height, width: of its output.
        layout: ``channels_first`` [B,C,h,w], ``channels_last`` [B,h,w,C], or ``tokens``
            [B,prefix + h w,C].
        prefix: leading tokens that are not part of the grid.
    """

    name: str
    kind: str
    channels: int
    height: int
    width: int
    layout: str = LAYOUTS[0]
    prefix: int = 0

    def __post_init__(self) -> None:
        check_choice(f"layer {self.name!r}", "layout", self.layout, LAYOUTS)

    def as_grid(self, x: Tensor) -> Tensor:
        """Its output, or a gradient [B,K,...] of it, as [B,C,h,w] or [B,K,C,h,w]."""
        return as_grid(x, Place(self.channels, self.height, self.width, self.layout, self.prefix))


@dataclass(frozen=True)
class Probe:
    """The result of one forward pass.

    Attributes:
        layers: modules that returned a grid that the score depends on, in order of execution.
        off_path: modules that returned a grid that the score does not depend on.
        other: modules that returned something else -> a description of it.
        idle: modules that did not run.
        classes: number of logits.
        input_size: (H, W) of the image.
    """

    layers: dict[str, LayerInfo]
    off_path: tuple[str, ...]
    other: dict[str, str]
    idle: tuple[str, ...]
    classes: int
    input_size: tuple[int, int]


def logits_of(output: object) -> Tensor:
    """Find the logits [B,n] in a model's output.

    Raises:
        TraceError: it is not a single [B,n] tensor.
    """
    if isinstance(output, (tuple, list)) and len(output) == 1:
        output = output[0]
    if not isinstance(output, Tensor) or output.ndim != 2:
        raise TraceError(
            f"trace: expected the model to return logits [B,n], got {_describe(output)}; wrap it "
            "in a module that returns only the logits"
        )
    return output


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return type(value).__name__


@contextmanager
def capturing(model: nn.Module, names: list[str], store: dict[str, Tensor]) -> Iterator[None]:
    """While active, store the outputs of the named modules, in order of execution.

    The outputs of modules whose inputs need no gradient start to require one, so nothing below the
    shallowest layer is differentiated. Downstream modules get a clone, so that an in-place
    activation after the layer does not change the captured output.
    """
    modules = dict(model.named_modules())

    def hook_for(name: str):  # type: ignore[no-untyped-def]
        def hook(module: nn.Module, args: object, output: object) -> object:
            if not isinstance(output, Tensor) or not output.is_floating_point():
                return None
            if not output.requires_grad:
                output = output.detach().requires_grad_()
            store.pop(name, None)  # the last of several calls counts
            store[name] = output
            return output.clone()

        return hook

    handles = [modules[name].register_forward_hook(hook_for(name)) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def probe(
    model: nn.Module, input_size: tuple[int, int], tokens: tuple[int, int, int] | None = None
) -> Probe:
    """Find every module that returns a grid (4-D, or tokens) on the path to the score.

    Args:
        model: in eval mode, parameters frozen.
        input_size: (H, W), pixels.
        tokens: (h, w, prefix) of the token grid, if it is not detected automatically.

    Raises:
        TraceError: the model does not run on [1,3,H,W], or does not return logits.
    """
    model = another(model)  # modules may keep tensors of their first call
    outputs: dict[str, object] = {}

    def noting(name: str):  # type: ignore[no-untyped-def]
        def hook(module: nn.Module, args: object, output: object) -> None:
            outputs.pop(name, None)
            outputs[name] = output

        return hook

    names = [name for name, _ in model.named_modules() if name]
    acts: dict[str, Tensor] = {}
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    like = next(model.parameters(), torch.empty(0))
    free = no_autocast(like.device)
    with mode, torch.inference_mode(False), torch.enable_grad(), free:
        modules = dict(model.named_modules())
        handles = [modules[name].register_forward_hook(noting(name)) for name in names]
        try:
            with capturing(model, names, acts):
                images = torch.empty(1, 3, *input_size, dtype=like.dtype, device=like.device)
                logits = logits_of(_call(model, images))
        finally:
            for handle in handles:
                handle.remove()
        places = find_places(acts, modules, input_size, tokens)
        grids = {n: acts[n] for n in places}
        if not logits.requires_grad:
            raise TraceError("trace: the model's output does not depend on any of its modules")
        inputs = list(grids.values())
        grads = torch.autograd.grad(logits.sum(), inputs, allow_unused=True) if inputs else ()
    on_path = {n for n, g in zip(grids, grads, strict=True) if g is not None}
    return Probe(
        layers={
            n: LayerInfo(n, type(modules[n]).__name__, *place)
            for n, place in places.items()
            if n in on_path
        },
        off_path=tuple(n for n in grids if n not in on_path),
        other={n: _describe(o) for n, o in outputs.items() if n not in grids},
        idle=tuple(n for n in names if n not in outputs),
        classes=logits.shape[1],
        input_size=input_size,
    )


def _call(model: nn.Module, images: Tensor) -> object:
    try:
        return model(images)
    except Exception as error:
        raise TraceError(
            f"trace: {type(model).__name__} does not run on images of shape "
            f"{tuple(images.shape)} ({first_line(error)}); check input_size and that "
            "the model takes one normalised [B,3,H,W] tensor"
        ) from error
