"""Watch a forward pass: which operators a module runs, where it stops, where gradients end."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from combicam.errors import first_line

# Operators that a straight line through zero is made of, and that change no values.
AFFINE = frozenset({"add", "sub", "rsub", "mul", "div", "neg", "where", "fill", "copy"})
SAME = frozenset(
    {"device", "clone", "detach", "alias", "_to_copy", "lift_fresh", "zeros_like", "empty_like"}
)
ACTIVATIONS = frozenset(
    {"rrelu_with_noise", "_prelu_kernel", "hardswish", "hardsigmoid", "log_sigmoid_forward"}
)


class Marks(NamedTuple):
    """Operators so far: all, those that bend a line point by point, those that mix points."""

    every: int = 0
    bent: int = 0
    mixed: int = 0

    def since(self, start: Marks) -> Marks:
        """Those between two points of a forward pass."""
        return Marks(*(b - a for a, b in zip(start, self, strict=True)))

    @property
    def is_activation(self) -> bool:
        """Whether these are an activation function: point by point, and not affine."""
        return self.bent > 0 and self.mixed == 0


class Watch(TorchDispatchMode):
    """Counts operators, and keeps the stack of modules that run.

    Attributes:
        marks: so far.
        spans: per call of a module, in the order of their ends: (module, start, end).
        stack: names of the modules that run now.
        cut: the first module that is called with a tensor without gradient although a module
            before it has one, and why; or None.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.marks = Marks()
        self.spans: list[tuple[str, Marks, Marks]] = []
        self.stack: list[str] = []
        self.cut: tuple[str, str] | None = None
        self._starts: list[Marks] = []
        self._seen = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        every, bent, mixed = self.marks
        name = func._schema.name.split("::")[-1].rstrip("_")
        if name not in SAME and not func.is_view:
            every += 1
            pointwise = torch.Tag.pointwise in func.tags or name in ACTIVATIONS
            if not pointwise and name not in AFFINE:
                mixed += 1
            elif name not in AFFINE:
                bent += 1
        self.marks = Marks(every, bent, mixed)
        return func(*args, **(kwargs or {}))

    @contextmanager
    def of(self, model: nn.Module, images: Tensor) -> Iterator[None]:
        """While active, follow the modules of a model that is called with ``images``."""
        self.images = images
        handles = []
        for name, module in model.named_modules():
            if name:
                handles.append(module.register_forward_pre_hook(self._enter(name), prepend=True))
                handles.append(module.register_forward_hook(self._leave(name)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, name: str) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...]) -> None:
            self.stack.append(name)
            self._starts.append(self.marks)
            given = [a for a in args if isinstance(a, Tensor) and a.is_floating_point()]
            lost = given and not given[0].requires_grad and given[0] is not self.images
            if self.cut is None and self._seen and lost:
                free = torch.is_grad_enabled()
                self.cut = (name, "behind a detach()" if free else "inside torch.no_grad()")

        return hook

    def _leave(self, name: str) -> Any:
        def hook(_module: nn.Module, _args: object, output: object) -> None:
            self.spans.append((name, self._starts.pop(), self.marks))
            self.stack.pop()
            self._seen = self._seen or isinstance(output, Tensor)

        return hook


REASONS = (
    (
        (
            "DataDependent",
            "data-dependent",
            "DynamicOutputShape",
            "Could not guard",
            "item()",
            "_local_scalar_dense",
        ),
        "a value of an image becomes a number of Python (a branch on it, .item(), int() or a "
        "size), and one graph has one path; use tensor operations such as torch.where",
    ),
    (
        (".numpy()", "numpy() on", "to a numpy", ".tolist()", "Can't call numpy"),
        "it leaves torch (such as by .numpy() or .tolist()), where nothing can be traced or "
        "differentiated; use torch's operations",
    ),
    (
        ("must match", "Kernel size can't", "shape", "size", "channels"),
        "check input_size, and that the model takes one normalised tensor [B,C,H,W] of that many "
        "channels; another C is given by Preprocess(channels=...) or Explainer(channels=...)",
    ),
)


def reason(error: BaseException, place: str = "") -> str:
    """Why a forward pass failed, where, and what to do: for the end of a message, in brackets.

    Args:
        error: that the model raised.
        place: the module that ran, if known.
    """
    text = f"{type(error).__name__} {error}"
    advice = next((a for words, a in REASONS if any(w in text for w in words)), "")
    # The innermost frame of the model's own code, not of torch.
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "/torch/" not in f.filename and "/combicam/" not in f.filename]
    own = [f for f in own if "/export/trace/" not in f.filename and f.filename[0] != "<"]
    line = f"{own[-1].filename}:{own[-1].lineno}" if own else ""
    where = " at ".join(part for part in (f"in module {place!r}" if place else "", line) if part)
    advice = advice or "make this part of the model's forward traceable"
    return "; ".join(part for part in (f"{first_line(error)} {where}".strip(), advice) if part)
