"""Copy the caller's model, so that the original is not changed."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager

import torch
from torch import nn

from combicam.errors import ModelError, TraceError


def snapshot(model: nn.Module) -> nn.Module:
    """A copy in eval mode whose parameters need no gradient.

    The caller's hooks, training flags, ``.grad`` and ``requires_grad`` are not changed, and later
    training does not affect the copy. Forward hooks are not copied (they would see tensors without
    values); pre-hooks are, because some parametrisations compute weights in them.

    Raises:
        TraceError: the module cannot be copied.
    """
    with torch.inference_mode(False), torch.no_grad():
        memo: dict[int, object] = {}
        for p in model.parameters():
            memo[id(p)] = nn.Parameter(p.detach().clone(), requires_grad=False)
        for b in model.buffers():
            memo[id(b)] = b.detach().clone()
        try:
            clone = copy.deepcopy(model, memo)
        except Exception as error:
            raise TraceError(
                f"Explainer: {type(model).__name__} cannot be copied ({error}); remove what the "
                "module has stored from a forward call, such as activations with gradients"
            ) from error
    for module in clone.modules():
        module._forward_hooks.clear()
        module._backward_hooks.clear()
        if getattr(module, "inplace", False) is True:
            setattr(module, "inplace", False)  # noqa: B010  same values, no in-place changes
    return clone.eval()


def memory_format(model: nn.Module) -> torch.memory_format:
    """The memory format of the model's convolutions, in which images are traced."""
    for p in model.parameters():
        if p.ndim == 4 and not p.is_contiguous():
            return torch.channels_last
    return torch.contiguous_format


def no_autocast(device: torch.device) -> AbstractContextManager[None]:
    """Disable the caller's autocast, so that the precision is the model's."""
    return torch.autocast(device.type, enabled=False)


def another(model: nn.Module) -> nn.Module:
    """A copy with shared weights, for calls that may leave state in the module."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(t): t for t in tensors})


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
