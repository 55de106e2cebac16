"""Name the operator and the module behind a node of a trace, or behind an error."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from traceback import walk_tb
from typing import Any, NamedTuple

import torch
from torch import SymInt, Tensor, fx, nn
from torch._dispatch.python import enable_python_dispatcher
from torch.fx.experimental.proxy_tensor import get_proxy_mode, make_fx
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from combicam.errors import TraceError

KEY = "combicam_origin"  # of graph nodes in their ``meta``, of autograd's in their ``metadata``
aten = torch.ops.aten
TORCH = ("aten", "prims")
SPLITS = frozenset({"split", "split_with_sizes", "chunk", "unbind", "unsafe_split", "unsafe_chunk"})


class Origin(NamedTuple):
    """A call of an operator in a model's forward.

    Attributes:
        function: that the model calls, such as ``torch.nn.functional.unfold``.
        module, kind: name and class of the innermost module that calls it.
        is_backward: whether its backward is meant.
    """

    function: Callable[..., Any]
    module: str
    kind: str
    is_backward: bool = False

    def __str__(self) -> str:
        name = resolve_name(self.function) or getattr(self.function, "__name__", "an operator")
        name = re.sub(r"^torch\._C\._nn\.|^torch\.functional\.", "torch.", name)
        where = f"module {self.module!r} ({self.kind})" if self.module else self.kind
        return f"{'the backward of ' if self.is_backward else ''}{name} in {where}"


class FixedBatch(TraceError):
    """A call that turns the symbolic batch into a number."""


class Origins:
    """Follows a model's calls while it is traced, and labels what they leave in the graph.

    The nodes of a call's backward are labelled by way of autograd's nodes.

    Args:
        model: that is traced.
        batch: symbolic size that no call may turn into a number; None does not check.
        python_forms: functions whose forms in Python are used instead of those in C++, many of
            which need sizes that are numbers.

    Attributes:
        last: the call that failed, or fixed the batch; else None.
    """

    def __init__(
        self,
        model: nn.Module,
        batch: SymInt | None = None,
        python_forms: Iterable[Callable[..., Any]] = (),
    ) -> None:
        self.model = model
        self.batch = batch
        self.python_forms = frozenset(python_forms)
        self.function: Callable[..., Any] | None = None
        self.stack: list[tuple[str, str]] = []
        self.last: Origin | None = None
        self.backward: Origin | None = None  # whose backward runs now
        self.is_fixed = False
        self.split = ""

    @contextmanager
    def followed(self) -> Iterator[None]:
        """While active, the model's calls are followed."""
        with ExitStack() as stack:
            for name, module in self.model.named_modules():
                enter = self._enter(name, type(module).__name__)
                for handle in (
                    module.register_forward_pre_hook(enter, prepend=True),
                    module.register_forward_hook(self._leave),
                ):
                    stack.callback(handle.remove)
            stack.enter_context(_Nodes(self))
            stack.enter_context(_Calls(self))
            yield

    def _enter(self, name: str, kind: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: object) -> None:
            self.stack.append((name, kind))

        return hook

    def _leave(self, _module: nn.Module, _args: object, output: object) -> None:
        self.stack.pop()

    def current(self) -> Origin | None:
        """The call that runs now, or whose backward does."""
        if self.backward is not None:
            return self.backward
        return Origin(self.function, *self.stack[-1]) if self.function and self.stack else None

    def check_batch(self) -> None:
        """Check that the batch is symbolic still, and in one tensor.

        Raises:
            FixedBatch: it is a number; ``last`` is the call that made it one.
            TraceError: a call distributes the images over several tensors.
        """
        if self.split:
            raise TraceError(
                f"trace: {self.split} splits the batch into several tensors, whose number depends "
                "on the number of images; split another dimension, or treat the batch as a whole"
            )
        self.note_batch()
        if self.is_fixed:
            raise FixedBatch(
                f"trace: {self.last or 'an operator'} fixes the batch size (something in it "
                "depends on the number of images, such as len(x) or int(x.shape[0]), for which "
                "x.shape[0] is symbolic); make every operation of the model's forward independent "
                "of the batch"
            )

    def note_batch(self) -> None:
        """Remember the first call that turns the batch into a number; C++ takes no exceptions."""
        if self.batch is not None and not self.is_fixed and _is_number(self.batch):
            self.is_fixed, self.last = True, self.current() or self.last

    def note_split(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Remember a call that distributes the images of a batch over several tensors."""
        if self.batch is None or func._schema.name.split("::")[-1] not in SPLITS:
            return
        names = [a.name for a in func._schema.arguments]
        dim = {**dict(zip(names, args, strict=False)), **kwargs}.get("dim", 0)
        if isinstance(args[0].shape[dim], SymInt):
            self.split = str(self.current() or func)

    def label(self) -> None:
        """Label the newest nodes of the graph that is traced."""
        mode = get_proxy_mode()
        if mode is not None:
            label_newest(mode.tracer.graph, self.current())

    def label_history(self, values: object) -> None:
        """Label the autograd nodes that a call made."""
        origin = self.current()
        if origin is None:
            return
        waiting: list[Any] = [v.grad_fn for v in tree_leaves(values) if isinstance(v, Tensor)]
        while waiting:
            node = waiting.pop()
            if node is not None and KEY not in node.metadata:
                node.metadata[KEY] = origin
                node.register_prehook(self._begin(origin._replace(is_backward=True)))
                waiting += [parent for parent, _ in node.next_functions]

    def _begin(self, origin: Origin) -> Callable[..., None]:
        def hook(_grads: object) -> None:
            self.backward = origin

        return hook


class _Calls(TorchFunctionMode):
    def __init__(self, origins: Origins) -> None:
        super().__init__()
        self.origins = origins

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        origins, in_python = self.origins, func in self.origins.python_forms
        if func is torch._C._set_grad_enabled:  # which belongs to the call around it
            return func(*args, **(kwargs or {}))
        before, origins.function = origins.function, func
        try:
            with enable_python_dispatcher() if in_python else nullcontext():
                value = func(*args, **(kwargs or {}))
            origins.check_batch()
            origins.label_history(value)
        except TraceError:
            raise
        except Exception:
            origins.last = origins.current() or origins.last
            raise
        finally:
            origins.function, origins.backward = before, None
        return value


class _Nodes(TorchDispatchMode):
    def __init__(self, origins: Origins) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.origins = origins

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.origins.note_batch()
        self.origins.note_split(func, args, kwargs or {})
        try:
            value = func(*args, **(kwargs or {}))
        except Exception:
            self.origins.last = self.origins.current() or self.origins.last
            raise
        self.origins.label()
        return value


def _is_number(size: SymInt | int) -> bool:
    if isinstance(size, int):
        return True
    env: Any = size.node.shape_env
    return bool(env.replace(size.node.expr).is_number)


def label_newest(graph: fx.Graph, origin: Origin | None) -> None:
    """Label the nodes at the end of a graph that have no label; None: not of the model."""
    node = graph._root.prev
    while node.op not in ("root", "placeholder") and KEY not in node.meta:
        node.meta[KEY] = origin
        node.meta["custom"] = {**node.meta.get("custom", {}), KEY: origin}  # kept by torch.export
        node = node.prev


class LabelledInterpreter(fx.Interpreter):
    """Runs a graph; if that is traced, the new nodes get the labels of the old ones."""

    def run_node(self, n: fx.Node) -> Any:
        value = self.compute(n)
        mode = get_proxy_mode()
        if mode is not None:
            label_newest(mode.tracer.graph, n.meta.get(KEY))
        return value

    def compute(self, n: fx.Node) -> Any:
        """The value of a node."""
        return super().run_node(n)


def retrace(run: Callable[..., Any], inputs: Sequence[Tensor]) -> fx.GraphModule:
    """Trace operators again, which need no gradients any more, in their forms in Python."""
    with torch._C._AutoDispatchBelowAutograd(), enable_python_dispatcher():
        return make_fx(run)(*inputs)


def operator_name(node: fx.Node) -> str:
    """``aten.im2col`` for ``aten.im2col.default``."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return str(target.overloadpacket)
    return str(target)


def origin_of(node: fx.Node) -> Origin | None:
    """The call that a node is of, if it is of the model."""
    origin: Origin | None = node.meta.get(KEY) or node.meta.get("custom", {}).get(KEY)
    return origin


def described(node: fx.Node) -> str:
    """The operator of a node, and the call and the module that it is of, if known."""
    origin = origin_of(node)
    return f"{operator_name(node)}, of {origin}" if origin else operator_name(node)


def check_portable(module: fx.GraphModule, namespaces: Collection[str] = TORCH) -> None:
    """Check that a graph has only operators of these namespaces.

    Raises:
        TraceError: one that only a process with its library could run.
    """
    for node in module.graph.nodes:
        if getattr(node.target, "namespace", "aten") not in namespaces:
            raise TraceError(
                f"export: expected operators of torch alone, got {described(node)}, which no file "
                "can hold; replace that module, or explain with an Explainer of the model "
                "(backend 'eager' or 'compile')"
            )


def culprit(module: fx.GraphModule, error: BaseException | None) -> str:
    """The node that a translator fails at, described; empty if it is not known.

    Args:
        module: the graph that could not be translated.
        error: one of its causes was raised in a function whose variable is the node, or names
            an operator.
    """
    causes = []
    while error is not None:
        causes.append(error)
        error = error.__cause__ or error.__context__
    for cause in causes:
        for frame, _ in walk_tb(cause.__traceback__):
            node = frame.f_locals.get("node")
            if isinstance(node, fx.Node) and origin_of(node):
                return described(node)
    for cause in causes:
        text = str(cause).replace("torch.ops.", "").replace("::", ".")
        for name in re.findall(r"\b[a-z]\w*\.\w+", text):
            for node in module.graph.nodes:
                if operator_name(node) == name:
                    return described(node)
    return ""
