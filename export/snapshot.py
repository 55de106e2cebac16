"""A private copy of the caller's model that shares its weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from combicam.errors import ModelError, TraceError


def _frozen(tensor: Tensor) -> Tensor:
    # Inference tensors cannot take part in autograd, and a clone outside inference mode can.
    shared = tensor.detach()
    return shared.clone() if shared.is_inference() else shared


def snapshot(model: nn.Module) -> nn.Module:
    """A copy in eval mode whose parameters need no gradient; weights are shared, not copied.

    The caller's hooks, training flags, ``.grad`` and ``requires_grad`` are not touched.

    Raises:
        TraceError: the module cannot be copied.
    """
    with torch.inference_mode(False), torch.no_grad():
        memo: dict[int, object] = {}
        for p in model.parameters():
            memo[id(p)] = nn.Parameter(_frozen(p), requires_grad=False)
        for b in model.buffers():
            memo[id(b)] = _frozen(b)
        try:
            clone = copy.deepcopy(model, memo)
        except Exception as error:
            raise TraceError(
                f"Explainer: {type(model).__name__} cannot be copied ({error}); remove what the "
                "module has stored from a forward call, such as activations with gradients"
            ) from error
    for module in clone.modules():
        if getattr(module, "inplace", False) is True:
            setattr(module, "inplace", False)  # noqa: B010  the same values, nothing to undo
    return clone.eval()


def check_finite(model: nn.Module) -> None:
    """Refuse weights that are NaN or infinite.

    Raises:
        ModelError: names the first tensors that are not finite.
    """
    named = [*model.named_parameters(), *model.named_buffers()]
    broken = [n for n, t in named if t.is_floating_point() and not bool(t.isfinite().all())]
    if broken:
        shown = ", ".join(broken[:3]) + (", ..." if len(broken) > 3 else "")
        raise ModelError(
            f"Explainer: expected finite weights, got NaN or infinity in {len(broken)} tensors "
            f"({shown}); check the checkpoint"
        )
