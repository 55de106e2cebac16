"""Run the model once on fake tensors, and record what every module returns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from combicam.errors import TraceError, first_line
from combicam.export.spec import check_choice
from combicam.export.tokens import LAYOUTS, Place, as_grid, find_places
from combicam.export.trace.checkpointing import plain_forward
from combicam.export.trace.origins import Origins
from combicam.export.trace.output import find_logits
from combicam.export.trace.snapshot import another
from combicam.export.trace.watch import Marks, Watch, reason


@dataclass(frozen=True)
class LayerInfo:
    """A module that returned one activation on a grid.

    Attributes:
        name: of the module, as in ``model.named_modules()``; of its second call ``name@2``, and
            so on.
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
        channels: of the image.
        spans: of the layers: which operators ran before each, and until its end.
        calls: how often each module ran.
        cut: where gradients end before the logits, in words; may be empty.
        ending: ``Softmax`` or ``Sigmoid`` if the model ends in it, else empty.
    """

    layers: dict[str, LayerInfo]
    off_path: tuple[str, ...]
    other: dict[str, str]
    idle: tuple[str, ...]
    classes: int
    input_size: tuple[int, int]
    spans: Mapping[str, tuple[Marks, Marks]] = field(default_factory=dict)
    calls: Mapping[str, int] = field(default_factory=dict)
    cut: str = ""
    ending: str = ""
    channels: int = 3


def call_name(module: str, call: int) -> str:
    """The name of a layer: of a module's first, second, ... call."""
    return module if call == 1 else f"{module}@{call}"


def module_name(layer: str) -> str:
    """The module of a layer: the name without ``@2``."""
    name, _, call = layer.rpartition("@")
    return name if name and call.isdigit() else layer


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return type(value).__name__


@contextmanager
def capturing(
    model: nn.Module,
    names: Collection[str] | None,
    store: dict[str, Tensor],
    change: Callable[[str, Tensor], Tensor] | None = None,
) -> Iterator[None]:
    """While active, store the outputs of the named layers, in order of execution.

    A module that is called several times is several layers, see :func:`call_name`. None captures
    every call of every module.

    The outputs of modules whose inputs need no gradient start to require one, so nothing below the
    shallowest layer is differentiated. Downstream modules get a clone, so that an in-place
    activation after the layer does not change the captured output; or what ``change`` makes of a
    layer's name and output.
    """
    modules = dict(model.named_modules())
    calls: Counter[str] = Counter()

    def hook_for(name: str):  # type: ignore[no-untyped-def]
        def hook(module: nn.Module, args: object, output: object) -> object:
            calls[name] += 1
            layer = call_name(name, calls[name])
            if names is not None and layer not in names:
                return None
            if not isinstance(output, Tensor) or not output.is_floating_point():
                return None
            if not output.requires_grad:
                output = output.detach().requires_grad_()
            store[layer] = output
            return output.clone() if change is None else change(layer, output)

        return hook

    wanted = [n for n in modules if n] if names is None else {module_name(n) for n in names}
    handles = [modules[name].register_forward_hook(hook_for(name)) for name in wanted]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def probe(
    model: nn.Module,
    input_size: tuple[int, int],
    tokens: tuple[int, int, int] | None = None,
    channels: int = 3,
) -> Probe:
    """Find every module that returns a grid (4-D, or tokens) on the path to the score.

    Args:
        model: in eval mode, parameters frozen.
        input_size: (H, W), pixels.
        tokens: (h, w, prefix) of the token grid, if it is not detected automatically.
        channels: C of the images.

    Raises:
        TraceError: the model does not run on [1,C,H,W], or does not return logits.
    """
    model = another(model)  # modules may keep tensors of their first call
    outputs: dict[str, object] = {}

    def noting(name: str):  # type: ignore[no-untyped-def]
        def hook(module: nn.Module, args: object, output: object) -> None:
            calls[name] += 1
            outputs[call_name(name, calls[name])] = output

        return hook

    names = [name for name, _ in model.named_modules() if name]
    acts: dict[str, Tensor] = {}
    calls: Counter[str] = Counter()
    watch, origins = Watch(), Origins(model)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    like = next(model.parameters(), torch.empty(0))
    free = plain_forward(like.device)
    with mode, torch.inference_mode(False), torch.enable_grad(), free:
        modules = dict(model.named_modules())
        handles = [modules[name].register_forward_hook(noting(name)) for name in names]
        try:
            images = torch.empty(1, channels, *input_size, dtype=like.dtype, device=like.device)
            with capturing(model, None, acts), watch.of(model, images), watch, origins.followed():
                logits = find_logits(_call(model, images, watch))
        finally:
            for handle in handles:
                handle.remove()
        if len(logits) != 1:
            raise TraceError(
                f"trace: expected logits [1,n] of one image, got {tuple(logits.shape)} of "
                f"{tuple(images.shape)}: the model takes other numbers of channels for several "
                "images; give their number by Preprocess(channels=...) or Explainer(channels=...)"
            )
        called = {name: modules[module_name(name)] for name in acts}
        places = find_places(acts, called, input_size, tokens)
        grids = {n: acts[n] for n in places}
        cut = f"gradients end at module {watch.cut[0]!r}, {watch.cut[1]}" if watch.cut else ""
        if not logits.requires_grad:
            raise TraceError(
                "trace: expected logits that depend on the model's modules by operations that can "
                f"be differentiated, got none; {cut or 'they are computed without gradients'}; "
                "remove torch.no_grad(), detach() or the like between the layers and the logits"
            )
        inputs = list(grids.values())
        try:
            grads = torch.autograd.grad(logits.sum(), inputs, allow_unused=True) if inputs else ()
        except Exception as error:
            raise TraceError(
                f"trace: {origins.backward or 'the backward'} fails ({first_line(error)}); replace "
                "that operator by others of torch, which have a derivative"
            ) from error
    on_path = {n for n, g in zip(grids, grads, strict=True) if g is not None}
    return Probe(
        layers={
            n: LayerInfo(n, type(called[n]).__name__, *place)
            for n, place in places.items()
            if n in on_path
        },
        off_path=tuple(n for n in grids if n not in on_path),
        other={n: _describe(o) for n, o in outputs.items() if n not in grids},
        idle=tuple(n for n in names if n not in outputs),
        classes=logits.shape[1],
        input_size=input_size,
        spans=_spans(watch),
        calls=dict(calls),
        cut=cut,
        ending=_ending(logits),
        channels=channels,
    )


def _spans(watch: Watch) -> dict[str, tuple[Marks, Marks]]:
    counts: Counter[str] = Counter()
    spans = {}
    for name, start, end in watch.spans:
        counts[name] += 1
        spans[call_name(name, counts[name])] = (start, end)
    return spans


def _ending(logits: Tensor) -> str:
    """Whether the last operator, apart from views and copies, gives probabilities."""
    node = logits.grad_fn
    while node is not None:
        name = node.name().removesuffix("0").removesuffix("Backward")
        if name in ("Softmax", "Sigmoid"):
            return name
        if name not in ("Clone", "View", "Unsafe_View", "Squeeze", "Reshape", "ToCopy", "Alias"):
            return ""
        node = node.next_functions[0][0]
    return ""


def _call(model: nn.Module, images: Tensor, watch: Watch) -> object:
    try:
        return model(images)
    except TraceError:
        raise
    except Exception as error:
        place = watch.stack[-1] if watch.stack else ""
        raise TraceError(
            f"trace: {type(model).__name__} does not run on images of shape "
            f"{tuple(images.shape)} ({reason(error, place)})"
        ) from error
