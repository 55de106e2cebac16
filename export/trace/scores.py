"""Compute the scores of targets: classes by number or rank, regions, and contrasts."""

from __future__ import annotations

import torch
from torch import Tensor

# Replaces log 0, for regions of all classes.
TINY = torch.finfo(torch.float32).tiny
# Ranking all of 31,145 classes would take more than 1 % of a graph's time.
MOST_RANKS = 1024


def last_rank(classes: int, count: int) -> int:
    """The largest k for which -k is the k-th best class: n, but at most 1024 (or K)."""
    return min(classes, max(count, MOST_RANKS))


def best_classes(batch: int, count: int, device: torch.device | None = None) -> Tensor:
    """Targets for the K best classes: -1, -2, …, -K for every image, int64 [B,K]."""
    return -1 - torch.arange(count, device=device).repeat(batch, 1)


def explained_classes(logits: Tensor, targets: Tensor | None, count: int) -> Tensor:
    """The classes of targets, int64 [B,K].

    Args:
        logits: [B,n].
        targets: int64 [B,K]: a class, or -k for the k-th best class; beyond :func:`last_rank` it
            means the class of that rank. None for the K best.
        count: K.
    """
    logits = logits.detach()
    if targets is None:
        return logits.topk(count, -1).indices
    last = last_rank(logits.shape[-1], count)
    ranked = logits.topk(last, -1).indices
    rank = (-1 - targets).clamp(0, last - 1)
    return torch.where(targets < 0, ranked.gather(-1, rank), targets)


def target_scores(
    logits: Tensor, targets: Tensor | None, score: str, target_input: str, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The scores to differentiate, one per image and target.

    With z = logits and p = softmax(z), of a class c:

    * ``logit``: z_c; ``prob``: p_c; ``logprob``: log p_c;

    and of weights v (one per class, of any sign), with P = sum_{v>0} v p and
    N = sum_{v<0} -v p:

    * ``logit``: sum v z; ``prob``: P - N; ``logprob``: log P - log N.

    A row without negative weights leaves N out (the region log P), one without positive ones
    leaves P out. One-hot v of both signs is the contrast of two classes: z_a - z_b for ``logit``
    and ``logprob``, in which the other classes cancel.

    Args:
        logits: [B,n], float32.
        targets: int64 [B,K], see :func:`explained_classes`; float32 [B,K,n]; or None.
        score: ``logit``, ``prob`` or ``logprob``.
        target_input: ``weights`` if ``targets`` are weights; else ``classes`` or ``none``.
        count: K.

    Returns:
        y [B,K], whose gradient is that of the score (its value differs from the score for ``prob``,
        and by a constant for ``logprob`` of weights); the classes int64 [B,K], -1 for weights; and
        the probability [B,K], detached: p_c, or P - N.
    """
    if target_input == "weights":
        assert targets is not None
        chosen = torch.full(targets.shape[:-1], -1, dtype=torch.int64, device=logits.device)
        y, probability = weight_scores(logits, targets, score)
    else:
        chosen = explained_classes(logits, targets, count)
        y, probability = class_scores(logits, chosen, score)
    return y, chosen, probability


def class_scores(logits: Tensor, classes: Tensor, score: str) -> tuple[Tensor, Tensor]:
    """y and the probability, both [B,K], of classes int64 [B,K]; see :func:`target_scores`."""
    every = torch.arange(logits.shape[-1], device=logits.device)
    others = torch.where(classes[..., None] == every, -torch.inf, logits[:, None])  # [B,K,n]
    inside = logits.gather(-1, classes)
    outside = others.logsumexp(-1)
    probability = torch.sigmoid(inside - outside).detach()
    if score == "logit":
        return inside, probability
    # log p = -softplus(outside - inside), with the log-sum-exp of the logits inside and outside the
    # target. This avoids 1 - p, which rounds to 0 if the model is certain. And d p = p d log p.
    logp = -torch.nn.functional.softplus(outside - inside)
    return (logp * probability if score == "prob" else logp), probability


def weight_scores(logits: Tensor, weights: Tensor, score: str) -> tuple[Tensor, Tensor]:
    """y and the probability, both [B,K], of weights [B,K,n]; see :func:`target_scores`."""
    probability = (weights * logits.detach().softmax(-1)[:, None]).sum(-1)
    if score == "logit":
        return (weights * logits[:, None]).sum(-1), probability
    return _of_weights(logits, weights, score), probability


def _of_weights(logits: Tensor, weights: Tensor, score: str) -> Tensor:
    """``prob`` or ``logprob`` of weights [B,K,n], [B,K].

    d is the log-sum-exp of one side minus that of the other. Cases of ``logprob``:

    1. weights of both signs: positive against negative ones, y = d;
    2. only positive ones: against the other classes, y = log P = -softplus(-d);
    3. only negative ones: the other classes against them, y = -log N = softplus(d).

    Branches that a row does not take are finite, too, so their gradients are zero, not NaN.
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
        # An empty side is replaced by all classes, which is finite; its mass is zero.
        held = torch.where((top == 0) & (other > 0), torch.ones_like(side), side)
        inside, outside = (z + held.log()).logsumexp(-1), (z + rest.log()).logsumexp(-1)
        mass = ((sign * weights).clamp_min(0) * p).sum(-1)
        parts.append(-torch.nn.functional.softplus(outside - inside) * mass)
    return parts[0] - parts[1]
