"""Keep what a caller's hooks and functions do to a network, in a copy of it."""

from __future__ import annotations

import copy
import dis
import functools
from collections.abc import Callable
from types import CellType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn


def rebind_functions(clone: nn.Module, memo: dict[int, Any]) -> None:
    """Let the hooks and replaced ``forward`` of a copy refer to the copy.

    A copied module has its functions, but not what they enclose: a ``forward`` that calls
    ``backbone`` would call the original's, and a hook that appends to a list would append to the
    caller's.

    Args:
        clone: the copy.
        memo: of the deep copy: ``id`` of an original -> its copy.
    """
    memo |= {id(module): module for module in clone.modules()}
    for module in clone.modules():
        if "forward" in vars(module):
            vars(module)["forward"] = _rebound(vars(module)["forward"], memo)
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key, hook in hooks.items():
                hooks[key] = _rebound(hook, memo)


def _rebound(function: Any, memo: dict[int, Any]) -> Any:
    """A function whose closure, defaults and global modules are copies."""
    function = getattr(function, "_torchdynamo_orig_callable", function)
    if isinstance(function, functools.partial):
        inner = _rebound(function.func, memo)
        return functools.partial(inner, *function.args, **function.keywords)
    if isinstance(function, MethodType):
        owner = function.__self__
        return MethodType(_rebound(function.__func__, memo), memo.get(id(owner), owner))
    if not isinstance(function, FunctionType):
        return function
    cells = tuple(_cell(cell, memo) for cell in function.__closure__ or ())
    known = function.__globals__
    named = [n for n in function.__code__.co_names if n in known]
    owners = {n: getattr(known[n], "__self__", known[n]) for n in named}
    modules = {
        n: _copied(known[n], memo)
        for n, owner in owners.items()
        if isinstance(owner, nn.Module) and id(owner) in memo
    }
    if not cells and not modules and not function.__defaults__:
        return function
    defaults = function.__defaults__ and tuple(_copied(v, memo) for v in function.__defaults__)
    space = {**known, **modules} if modules else known
    return FunctionType(function.__code__, space, function.__name__, defaults, cells)


def _cell(cell: CellType, memo: dict[int, Any]) -> CellType:
    try:
        return CellType(_copied(cell.cell_contents, memo))
    except ValueError:  # empty
        return cell


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    if id(value) in memo:
        return memo[id(value)]
    if isinstance(value, (FunctionType, MethodType)):
        return _rebound(value, memo)
    try:
        return copy.deepcopy(value, memo)  # one memo: functions go on sharing what they share
    except Exception:  # what cannot be copied is shared
        return value


def drop_silent_hooks(model: nn.Module) -> None:
    """Remove forward hooks that can be seen to return nothing: they only watch."""
    for module in model.modules():
        for key, hook in list(module._forward_hooks.items()):
            if _returns_nothing(hook):
                _remove(module, key)


def _remove(module: nn.Module, key: int) -> None:
    for hooks in (
        module._forward_hooks,
        module._forward_hooks_with_kwargs,
        module._forward_hooks_always_called,
    ):
        hooks.pop(key, None)


def _returns_nothing(hook: Any) -> bool:
    """Whether every return statement of a function returns None."""
    while not isinstance(hook, FunctionType):
        inner = getattr(hook, "func", None) or getattr(hook, "__func__", None)
        if inner is None:
            return False
        hook = inner
    before = None
    for step in dis.get_instructions(hook):
        if step.opname == "RETURN_CONST" and step.argval is not None:
            return False
        if step.opname == "RETURN_VALUE":
            # A jump to the return comes from a conditional expression.
            if step.is_jump_target or before is None or before.opname != "LOAD_CONST":
                return False
            if before.argval is not None:
                return False
        before = step
    return True


def own_logits(
    model: nn.Module, images: Tensor, read: Callable[[object], Tensor]
) -> tuple[Tensor, ...]:
    """Run a copied model on one image after another; hooks that return nothing are then removed.

    Args:
        model: a snapshot.
        images: [N,C,H,W], in the model's type.
        read: finds the logits in what the model returns.

    Returns:
        The logits [1,n] of every image.
    """
    watched = [(m, key, hook) for m in model.modules() for key, hook in m._forward_hooks.items()]
    speaking: set[tuple[int, int]] = set()

    def watching(module: nn.Module, key: int, hook: Any) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            result = hook(*args, **kwargs)
            if result is not None:
                speaking.add((id(module), key))
            return result

        return call

    for module, key, hook in watched:
        module._forward_hooks[key] = watching(module, key, hook)
    try:
        with torch.no_grad():
            logits = tuple(read(model(image[None])).float() for image in images)
    finally:
        for module, key, hook in watched:
            module._forward_hooks[key] = hook
    for module, key, _ in watched:
        if (id(module), key) not in speaking:
            _remove(module, key)
    return logits
