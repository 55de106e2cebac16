"""Second derivatives of the scores: what ShapleyCAM pools instead of gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from combicam.export.trace.scores import LogOdds


def shapley_gradients(
    odds: LogOdds, logits: Tensor, acts: Sequence[Tensor], targets: int
) -> list[Tensor]:
    """G - H A / 2 per layer, with the gradient G and the Hessian H of a score by A: [B,K,...].

    With w_c = mean(G - H A / 2)_c, sum_c w_c A_c is ShapleyCAM: the Shapley value of pixels in a
    second-order expansion of the score. The product H A is the derivative of <G, A> with A held
    constant, so each layer takes one more backward pass, through the forward and the backward pass
    above it. Of piecewise linear networks and the score ``logit``, H is zero.

    Args:
        odds: of ``logits``; the result is to be multiplied by its scale.
        logits: [B,n], of ``acts``.
        acts: per layer [B,...].
        targets: K.

    Source: Cai 2025, arXiv 2501.06261.
    """
    each = []
    for k in range(targets):
        seed = odds.gradient(logits, k)
        grads = torch.autograd.grad(logits, acts, seed, create_graph=True)
        pairs = zip(grads, acts, strict=True)
        each.append([(g - 0.5 * _derivative(g, a)).detach() for g, a in pairs])
    return [torch.stack(layer, 1) for layer in zip(*each, strict=True)]


def _derivative(gradient: Tensor, act: Tensor) -> Tensor:
    """d <gradient, act held constant> / d act."""
    if not gradient.requires_grad:
        return torch.zeros_like(act)
    found = torch.autograd.grad(gradient, act, act.detach(), retain_graph=True, allow_unused=True)[
        0
    ]
    return torch.zeros_like(act) if found is None else found
