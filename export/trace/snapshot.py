"""Copy the caller's model, so that the original is not changed."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from combicam.errors import ModelError, TraceError, first_line
from combicam.export.trace.hooks import drop_silent_hooks, rebind_functions

WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def snapshot(model: nn.Module) -> nn.Module:
    """A copy in eval mode whose parameters need no gradient.

    The caller's hooks, training flags, ``.grad`` and ``requires_grad`` are not changed, and later
    training does not affect the copy. What belongs to the network is kept: forward pre-hooks,
    forward hooks that may return a value, and a replaced ``forward``, with the modules that they
    refer to replaced by their copies. Cases:

    1. ``torch.compile``, DataParallel and DistributedDataParallel are taken off, at any depth;
    2. weight_norm, spectral_norm and pruning compute a weight before each call: it is fixed;
    3. ``BatchNorm2d`` without running statistics would normalise an image by its neighbours: it
       becomes ``InstanceNorm2d``, which computes what it computes for a single image.

    Raises:
        TraceError: the module cannot be copied, or has no values to copy.
    """
    model = _inside(model)
    _check_kind(model)
    with torch.inference_mode(False), torch.no_grad():
        memo: dict[int, Any] = {}
        for p in model.parameters():
            memo[id(p)] = nn.Parameter(p.detach().clone(), requires_grad=False)
        for b in model.buffers():
            memo[id(b)] = b.detach().clone()
        for t in _stored_tensors(model):  # such as weights and activations with a history
            memo.setdefault(id(t), t.detach().clone())
        try:
            for module in reversed(list(model.modules())):
                if getattr(module, "_compiled_call_impl", None) is not None:
                    memo[id(module._compiled_call_impl)] = None
                if _inside(module) is not module:  # case 1
                    memo[id(module)] = copy.deepcopy(_inside(module), memo)
            clone: nn.Module = copy.deepcopy(model, memo)
        except Exception as error:
            raise TraceError(
                f"Explainer: {type(model).__name__} cannot be copied ({first_line(error)}): "
                f"{_uncopied(model)}; remove it from the module, or give the module a "
                "__deepcopy__ without it"
            ) from error
        for module in clone.modules():
            _fix_weights(module)
    rebind_functions(clone, memo)
    drop_silent_hooks(clone)
    for module in clone.modules():
        module._backward_hooks.clear()
        if getattr(module, "inplace", False) is True:
            setattr(module, "inplace", False)  # noqa: B010  same values, no in-place changes
        if type(module) is nn.BatchNorm2d and module.running_mean is None:
            module.__class__ = nn.InstanceNorm2d  # type: ignore[assignment]  # case 3
    return clone.eval()


def _inside(model: nn.Module) -> nn.Module:
    """The module in ``torch.compile``'s wrapper or a parallel one, or itself (case 1)."""
    while True:
        if isinstance(model, WRAPPERS):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


def _check_kind(model: nn.Module) -> None:
    for name, module in model.named_modules():
        where = f"module {name!r} ({type(module).__name__})" if name else type(module).__name__
        if isinstance(module, torch.jit.ScriptModule):
            raise TraceError(
                f"Explainer: expected a torch.nn.Module of Python, got {where}, a TorchScript "
                "module (scripted, traced or frozen), whose layers cannot be differentiated one "
                "by one; pass the module that it was made from"
            )
        if ".quantized" in type(module).__module__:
            raise TraceError(
                f"Explainer: expected weights of floats, got {where}, a quantised module without "
                "gradients; explain the network before its conversion"
            )
        tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for key, tensor in tensors:
            if is_lazy(tensor):
                raise TraceError(
                    f"Explainer: expected initialised weights, got the lazy {key!r} of {where}; "
                    "run the model once on an image before"
                )
            if tensor.is_meta:
                raise TraceError(
                    f"Explainer: expected weights with values, got {key!r} of {where} on the "
                    "meta device; call model.to_empty(device='cpu') and load a checkpoint"
                )


def _stored_tensors(model: nn.Module) -> Iterator[Tensor]:
    """Tensors in attributes of modules, also in lists and dicts, that are not buffers."""
    for module in model.modules():
        waiting = [value for key, value in vars(module).items() if key != "_modules"]
        for _ in range(100_000):
            if not waiting:
                break
            value = waiting.pop()
            if isinstance(value, Tensor):
                yield value
            elif isinstance(value, dict):
                waiting += value.values()
            elif isinstance(value, (list, tuple)):
                waiting += value


def _uncopied(model: nn.Module) -> str:
    """The attribute that cannot be copied."""
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if key in ("_modules", "_parameters", "_buffers"):
                continue
            try:
                copy.deepcopy(value, {id(m): m for m in model.modules()})
            except Exception:
                owner = f"module {name!r}" if name else "the model"
                return f"the attribute {key!r} of {owner} is a {type(value).__name__}"
    return "one of its attributes cannot be"


def _fix_weights(module: nn.Module) -> None:
    """Compute a weight once, instead of before every call (case 2)."""
    for hook in list(module._forward_pre_hooks.values()):
        if isinstance(hook, WeightNorm):
            remove_weight_norm(module, hook.name)
        elif isinstance(hook, SpectralNorm):
            remove_spectral_norm(module, hook.name)
        elif isinstance(hook, prune.BasePruningMethod):
            assert hook._tensor_name is not None
            prune.remove(module, hook._tensor_name)
    for p in module.parameters(recurse=False):
        p.requires_grad_(False)


def memory_format(model: nn.Module) -> torch.memory_format:
    """The memory format of the model's convolutions, in which images are traced."""
    for p in model.parameters():
        if p.ndim == 4 and not p.is_contiguous():
            return torch.channels_last
    return torch.contiguous_format


def another(model: nn.Module) -> nn.Module:
    """A copy with shared weights, for calls that may leave state in the module."""
    tensors = [*model.parameters(), *model.buffers()]
    memo: dict[int, Any] = {id(t): t for t in tensors}
    clone = copy.deepcopy(model, memo)
    rebind_functions(clone, memo)
    return clone


def model_state(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, in the order of a traced function's arguments."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def check_finite(model: nn.Module) -> None:
    """Check that weights are finite.

    Raises:
        ModelError: they are not; the message names the first such tensors.
    """
    named = [*model.named_parameters(), *model.named_buffers()]
    broken = [n for n, t in named if t.is_floating_point() and not bool(t.isfinite().all())]
    if broken:
        shown = ", ".join(broken[:3]) + (", ..." if len(broken) > 3 else "")
        raise ModelError(
            f"Explainer: expected finite weights, got NaN or infinity in {len(broken)} tensors "
            f"({shown}); check the checkpoint"
        )
