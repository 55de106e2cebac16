"""Scores of targets: classes by rank or by name, regions, and contrasts of either."""

from __future__ import annotations

import torch
from torch import Tensor

# Stands for the logarithm of nothing where a region holds all classes.
TINY = torch.finfo(torch.float32).tiny


def target_scores(
    logits: Tensor, targets: Tensor | None, score: str, target_input: str, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """What is explained: a number per image and target, ready to be differentiated.

    With z = logits and p = softmax(z), of a class c:

    * ``logit``: z_c; ``prob``: p_c; ``logprob``: log p_c;

    and of weights v (one per class, of either sign), where P = sum_{v>0} v p and
    N = sum_{v<0} -v p:

    * ``logit``: sum v z; ``prob``: P - N; ``logprob``: log P - log N.

    A row without negative weights leaves N out (the region log P), one without positive ones
    leaves P out. One-hot v of both signs is the contrast of two classes: z_a - z_b for ``logit``
    and ``logprob``, in which the other classes cancel.

    Args:
        logits: [B,n], float32.
        targets: int64 [B,K], negative entries mean the k-th best class; float32 [B,K,n]; or None.
        score: ``logit``, ``prob`` or ``logprob``.
        target_input: ``weights`` where ``targets`` are; else ``classes`` or ``none``.
        count: K.

    Returns:
        y [B,K], whose gradient is that of the score (of ``prob``, its value is not the score's;
        of ``logprob`` and weights, it is the score plus a constant of the weights); the classes
        int64 [B,K], -1 for weights; and the probability [B,K], detached: p_c, or P - N.
    """
    if target_input == "weights":
        assert targets is not None
        chosen = torch.full(targets.shape[:-1], -1, dtype=torch.int64, device=logits.device)
        probability = (targets * logits.detach().softmax(-1)[:, None]).sum(-1)
        if score == "logit":
            return (targets * logits[:, None]).sum(-1), chosen, probability
        return _of_weights(logits, targets, score), chosen, probability
    chosen = logits.detach().topk(count, -1).indices
    if targets is not None:
        chosen = torch.where(targets < 0, chosen, targets)
    classes = torch.arange(logits.shape[-1], device=logits.device)
    others = torch.where(chosen[..., None] == classes, -torch.inf, logits[:, None])  # [B,K,n]
    inside = logits.gather(-1, chosen)
    outside = others.logsumexp(-1)
    probability = torch.sigmoid(inside - outside).detach()
    if score == "logit":
        return inside, chosen, probability
    # log p = -softplus(outside - inside), with the log-sum-exp of what is inside the target and of
    # what is not: 1 - p, of which rounding leaves nothing when the network is certain, is never
    # formed. And d p = p d log p.
    logp = -torch.nn.functional.softplus(outside - inside)
    return (logp * probability if score == "prob" else logp), chosen, probability


def _of_weights(logits: Tensor, weights: Tensor, score: str) -> Tensor:
    """``prob`` or ``logprob`` of weights [B,K,n], [B,K].

    d is the log-sum-exp of one side minus that of the other. Cases of ``logprob``:

    1. weights of both signs: positive against negative ones, y = d;
    2. positive ones alone: against what they leave out, y = log P = -softplus(-d);
    3. negative ones alone: what they leave out against them, y = -log N = softplus(d).

    The branches that a row does not take are finite, too: their gradients are zero, never NaN.
    """
    plus, minus = weights.clamp_min(0), (-weights).clamp_min(0)
    high, low = plus.amax(-1, keepdim=True), minus.amax(-1, keepdim=True)
    has_plus, has_minus = high > 0, low > 0
    # A factor does not change the gradient. Weights that are all zero give NaN.
    plus = plus / torch.where(has_plus, high, low)
    minus = minus / torch.where(has_minus, low, high)
    rest_plus, rest_minus = (1 - plus).clamp_min(TINY), (1 - minus).clamp_min(TINY)
    z = logits[:, None]
    if score == "logprob":
        first = torch.where(has_plus, plus, rest_minus)
        second = torch.where(has_minus, minus, rest_plus)
        d = (z + first.log()).logsumexp(-1) - (z + second.log()).logsumexp(-1)
        softplus = torch.nn.functional.softplus
        one_sided = torch.where(has_plus[..., 0], -softplus(-d), softplus(d))
        return torch.where((has_plus & has_minus)[..., 0], d, one_sided)
    p = logits.detach().softmax(-1)[:, None]
    parts = []
    for side, rest, sign, top, other in (
        (plus, rest_plus, 1, high, low),
        (minus, rest_minus, -1, low, high),
    ):
        # An empty side is the whole instead: finite, and its mass is zero.
        held = torch.where((top == 0) & (other > 0), torch.ones_like(side), side)
        inside, outside = (z + held.log()).logsumexp(-1), (z + rest.log()).logsumexp(-1)
        mass = ((sign * weights).clamp_min(0) * p).sum(-1)
        parts.append(-torch.nn.functional.softplus(outside - inside) * mass)
    return parts[0] - parts[1]
