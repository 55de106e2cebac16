"""Compute the scores of targets: classes by number or rank, regions, contrasts, Finer-CAM."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from combicam.export.spec import CamSpec
from combicam.kernels.cam_head import LEAST_SCALE

# Scores of labels that do not exclude each other: each has a sigmoid of its own.
LABEL_SCORES = ("sigmoid", "logsigmoid")
# The sum of float16's gradients times activations; the largest number of float16 is 65504.
SEED = 256.0
Terms = Sequence[tuple[Tensor | None, Tensor]]
# Ranking all of 31,145 classes would take more than 1 % of a graph's time.
MOST_RANKS = 1024


def fitting_score(score: str, classes: int) -> str:
    """The score itself; of a single logit, for a probability that of the sigmoid."""
    of_labels = {"prob": "sigmoid", "logprob": "logsigmoid"}
    return of_labels.get(score, score) if classes == 1 else score


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
    """The scores of every image's targets, their classes and probabilities.

    With z = logits, and p = softmax(z), or p = sigmoid(z) for ``sigmoid``, ``logsigmoid``, and
    wherever there is one logit; of a class c:

    * ``logit``: z_c; ``prob``, ``sigmoid``: p_c; ``logprob``, ``logsigmoid``: log p_c;

    and of weights v (one per class, of any sign), with P = sum_{v>0} v p and
    N = sum_{v<0} -v p:

    * ``logit``: sum v z; ``prob``, ``sigmoid``: P - N; ``logprob``, ``logsigmoid``: log P - log N.

    A row without negative weights leaves N out (the region log P), one without positive ones
    leaves P out. One-hot v of both signs is the contrast of two classes: z_a - z_b for ``logit``
    and ``logprob``, in which the other classes cancel.

    Args:
        logits: [B,n], float32.
        targets: int64 [B,K], see :func:`explained_classes`; float32 [B,K,n]; or None.
        score: one of ``SCORES`` of :mod:`combicam.export.spec`.
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


@dataclass(frozen=True)
class LogOdds:
    """What to differentiate instead of a score, because its gradient does not vanish.

    d log p_c = (1 - p_c) d(z_c - log sum_{j != c} exp z_j), and 1 - p_c rounds to 0 for a network
    that is certain. So the log-odds are differentiated, whose gradient is of order 1, and the
    factor is kept: ds = scale * sum over terms of factor * d value, at every z, so that second
    derivatives of the score are those of this equation.

    Attributes:
        terms: (factor, value), both [B,K] or both [B,K,n], which is summed; the factor None is 1.
            Factors are of order 1 and depend on the logits; for first derivatives they are
            constants.
        log_scale: the logarithm of the scale, float32 [B,K]; None for 0.
    """

    terms: Terms
    log_scale: Tensor | None = None

    @property
    def y(self) -> Tensor:
        """Its gradient, times the scale, is that of the score: [B,K]."""
        each = [
            value if factor is None else factor.detach() * value for factor, value in self.terms
        ]
        first, *more = [x.sum(-1) if x.ndim == 3 else x for x in each]
        return sum(more, first)

    @property
    def scale(self) -> Tensor | None:
        """Detached, at least ``LEAST_SCALE``; None for 1."""
        if self.log_scale is None:
            return None
        return self.log_scale.detach().clamp_min(math.log(LEAST_SCALE)).exp()

    def gradient(self, logits: Tensor, k: int) -> Tensor:
        """ds/dz / scale of the k-th target, [B,n], which can be differentiated again."""
        values, factors = [], []
        for factor, value in self.terms:
            ones = torch.ones_like(value) if factor is None else factor
            if self.log_scale is not None:  # 1, but for its derivatives
                ratio = (self.log_scale - self.log_scale.detach()).exp()
                ones = ones * (ratio if ones.ndim == 2 else ratio[..., None])
            values.append(value[:, k])
            factors.append(ones[:, k])
        return torch.autograd.grad(values, logits, factors, create_graph=True)[0]


def log_odds(logits: Tensor, targets: Tensor, score: str, target_input: str) -> LogOdds:
    """The log-odds of targets, see :class:`LogOdds`.

    Args:
        logits: [B,n], float32.
        targets: the classes int64 [B,K] (no ranks), or weights float32 [B,K,n].
        score, target_input: see :func:`target_scores`.
    """
    with_weights = target_input == "weights"
    if score == "logit":
        y = (targets * logits[:, None]).sum(-1) if with_weights else logits.gather(-1, targets)
        return LogOdds([(None, y)])
    if with_weights:
        make = _label_weight_odds if score in LABEL_SCORES else _weight_odds
        terms, log_scale = make(logits, targets, score)
    else:
        y = class_odds(logits, targets, score)
        log_scale = -softplus(y)
        if score in ("prob", "sigmoid"):
            log_scale = log_scale - softplus(-y)
        terms = [(None, y)]
    return LogOdds(terms, log_scale)


def similar_classes(logits: Tensor, classes: Tensor, count: int) -> Tensor:
    """The classes whose logits are closest to those of ``classes`` [B,K]: int64 [B,K,count]."""
    z = logits.detach()
    distance = (z[:, None] - z.gather(-1, classes)[..., None]).abs()  # [B,K,n]
    every = torch.arange(z.shape[-1], device=z.device)
    distance = torch.where(classes[..., None] == every, torch.inf, distance)
    return distance.topk(count, -1, largest=False).indices


def finer_scores(
    logits: Tensor, classes: Tensor, similar: Tensor, spec: CamSpec
) -> tuple[Tensor, Tensor]:
    """y and the probability p_c, both [B,K], of classes against similar ones (Finer-CAM).

    y = s_c - alpha sum_i w_i s_i over the similar classes i, with s the spec's score, ``logit`` or
    ``logprob``, and w_i equal (``mean``) or the softmax of their logits, which is differentiated,
    too. Its gradient does not vanish where the model is certain.

    Source: arXiv 2501.11309; the softmax as in its authors' code.

    Args:
        logits: [B,n], float32.
        classes: int64 [B,K].
        similar: int64 [B,K,k], see :func:`similar_classes`.
        spec: ``score``, ``finer_alpha`` and ``finer_weights`` are used.
    """
    z = logits[:, None].expand(-1, classes.shape[1], -1).gather(-1, similar)  # [B,K,k]
    others = (z * z.softmax(-1)).sum(-1) if spec.finer_weights == "softmax" else z.mean(-1)
    y = logits.gather(-1, classes) - spec.finer_alpha * others
    if spec.score == "logprob":
        y = y - (1 - spec.finer_alpha) * _log_sum_exp(logits)[:, None]
    return y, class_scores(logits, classes, "logit")[1]


def enlarged(odds: LogOdds, logits: Tensor) -> LogOdds:
    """Factors times a number per image, and the scale divided by it: gradients that suit float16.

    Below 6e-5 float16 loses digits, and gradients of single pixels are smaller. In a network of
    ReLUs without biases, the products of a layer's activations and gradients sum up to y; the
    factor makes that sum at most ``SEED`` for the largest logit, far from float16's limit.
    """
    number = SEED / logits.detach().abs().amax(-1, keepdim=True).clamp_min(1)  # [B,1]
    terms = []
    for factor, value in odds.terms:
        each = number if value.ndim == 2 else number[..., None]
        terms.append((each.expand_as(value) if factor is None else factor * each, value))
    log_scale = torch.zeros_like(odds.y) if odds.log_scale is None else odds.log_scale
    return LogOdds(terms, log_scale - number.log())


def class_odds(logits: Tensor, classes: Tensor, score: str) -> Tensor:
    """The log-odds of classes int64 [B,K], [B,K]; of labels, their logits."""
    inside = logits.gather(-1, classes)
    of_labels = score in LABEL_SCORES or logits.shape[-1] == 1
    return inside if of_labels else inside - _others(logits, classes)


def score_drops(odds: Tensor, changed: Tensor, score: str) -> tuple[Tensor, Tensor]:
    """By how much a probability, or its logarithm, drops when its log-odds change.

    1 - p rounds to 0 where the model is certain, and so do differences of p and of log p. So 1 - p
    is compared (or -log p, or p itself where it is small), by its logarithm:
    drop = e^m (e^(b - m) - e^(a - m)), m the largest of them.

    Args:
        odds: [B,K].
        changed: of N changes, [B,K,N].
        score: any but ``logit``.

    Returns:
        The drops [B,K,N] divided by their scale; and that scale e^m [B,K], at least
        ``LEAST_SCALE``.
    """
    both = torch.cat([odds[..., None], changed], -1)
    if score in ("prob", "sigmoid"):
        likely = odds[..., None] > 0
        sign = torch.where(likely, 1.0, -1.0)  # p_a - p_b = (1 - p_b) - (1 - p_a)
        logs = -softplus(sign * both)
    else:
        sign = torch.ones_like(odds)[..., None]
        small = -both - 0.5 * (-both.clamp_min(15)).exp()  # of log softplus(-x)
        logs = torch.where(both > 15, small, softplus(-both.clamp_max(15)).log())
    largest = logs.amax(-1, keepdim=True)
    sizes = (logs - largest).exp()
    scale = largest[..., 0].clamp_min(math.log(LEAST_SCALE)).exp()
    return sign * (sizes[..., 1:] - sizes[..., :1]), scale


def _others(logits: Tensor, classes: Tensor) -> Tensor:
    """The log-sum-exp of the other classes' logits, [B,K]."""
    every = torch.arange(logits.shape[-1], device=logits.device)
    others = torch.where(classes[..., None] == every, -torch.inf, logits[:, None])  # [B,K,n]
    return _log_sum_exp(others)


def _log_sum_exp(x: Tensor) -> Tensor:
    """log sum exp over the last axis, [...,n] -> [...]; -inf counts as nothing.

    ONNX Runtime's ReduceLogSumExp adds up one value after another: 1e-5 off for 100,000 classes.
    """
    top = x.detach().amax(-1, keepdim=True)
    top = torch.where(top == -torch.inf, 0.0, top)
    return (x - top).exp().sum(-1).log() + top[..., 0]


def class_scores(logits: Tensor, classes: Tensor, score: str) -> tuple[Tensor, Tensor]:
    """y and the probability, both [B,K], of classes int64 [B,K]; see :func:`target_scores`."""
    # log p = -softplus(outside - inside), with the log-sum-exp of the logits inside and outside the
    # target. This avoids 1 - p, which rounds to 0 if the model is certain. And d p = p d log p.
    odds = class_odds(logits, classes, score)
    logp = -softplus(-odds)
    # Not the sigmoid of the odds: where p is small, that of ONNX Runtime is only right to 1e-8.
    probability = logp.exp().detach()
    if score == "logit":
        return logits.gather(-1, classes), probability
    return (logp * probability if score in ("prob", "sigmoid") else logp), probability


def weight_scores(logits: Tensor, weights: Tensor, score: str) -> tuple[Tensor, Tensor]:
    """y and the probability, both [B,K], of weights [B,K,n]; see :func:`target_scores`."""
    z = logits[:, None]
    of_labels = score in LABEL_SCORES or logits.shape[-1] == 1
    logp = -softplus(-z) if of_labels else z.log_softmax(-1)
    probability = (weights * logp.exp()).sum(-1)
    if score == "logit":
        return (weights * z).sum(-1), probability.detach()
    if score in ("prob", "sigmoid"):
        return probability, probability.detach()
    masses = [_log_sum(logp, side)[..., 0] for side in (weights, -weights)]
    # Weights that are all zero give NaN.
    empty = [torch.where(m == -torch.inf, 0.0, m) for m in masses]
    nothing = (masses[0] == -torch.inf) & (masses[1] == -torch.inf)
    return torch.where(nothing, torch.nan, empty[0] - empty[1]), probability.detach()


def _log_sum(logs: Tensor, weights: Tensor) -> Tensor:
    """log sum_{v>0} v exp(l), [B,K,1]; -inf if no v is positive, with gradient 0."""
    held = weights > 0
    some = held.any(-1, keepdim=True)
    # A row without any is replaced by a finite one: the log-sum-exp of -inf alone has no gradient.
    log_weights = torch.where(held | ~some, torch.where(held, weights, 1.0).log(), -torch.inf)
    return torch.where(some, _log_sum_exp(logs + log_weights)[..., None], -torch.inf)


def _weight_odds(logits: Tensor, weights: Tensor, score: str) -> tuple[Terms, Tensor]:
    """Terms and the logarithm of their scale, [B,K], for ``prob`` and ``logprob`` of weights.

    With the largest positive weight as 1, the log-odds of P are the log-sum-exp of its classes
    minus that of the rest, of weights 1 - v; those of N likewise. Cases of ``logprob``:

    1. weights of both signs: y = log P - log N, whose gradient does not vanish;
    2. only positive ones: y are the log-odds of P, d log P = (1 - P) dy;
    3. only negative ones: y are minus those of N, d -log N = (1 - N) dy.

    For ``prob``, dP = P (1 - P) d(log-odds of P), and the larger of the two factors is the scale.
    """
    z = logits[:, None]
    sides = [_Side(z, sign * weights) for sign in (1, -1)]
    plus, minus = sides
    if score == "logprob":
        both = plus.exists & minus.exists
        one = torch.where(plus.exists, plus.odds, -minus.odds)
        one = one * torch.where(plus.exists | minus.exists, 1.0, torch.nan)  # all weights are 0
        y = torch.where(both, plus.log_sum - minus.log_sum, one)
        odds = torch.where(plus.exists, plus.odds, minus.odds)
        return [(None, y)], torch.where(both, 0.0, -softplus(odds))
    logs = [s.log_high - softplus(s.odds) - softplus(-s.odds) for s in sides]
    largest = torch.maximum(*logs)
    signed = zip((1, -1), logs, sides, strict=True)
    return [(sign * (log - largest).exp(), side.odds) for sign, log, side in signed], largest


class _Side:
    """The weights of one sign against the rest; of a row without any, finite values."""

    def __init__(self, z: Tensor, weights: Tensor) -> None:
        v = weights.clamp_min(0)
        high = v.amax(-1, keepdim=True)
        self.exists = high[..., 0] > 0
        self.log_high = high[..., 0].log()  # -inf if there are none
        v = torch.where(high > 0, v / torch.where(high > 0, high, 1.0), 1.0)
        rest = 1 - v
        # All classes weigh the same: P is a constant. Against themselves, their gradient is 0.
        rest = torch.where(rest.amax(-1, keepdim=True) > 0, rest, 1.0)
        self.log_sum = _log_sum_exp(z + v.log())
        self.odds = self.log_sum - _log_sum_exp(z + rest.log())


def _label_weight_odds(logits: Tensor, weights: Tensor, score: str) -> tuple[Terms, Tensor]:
    """Terms and the logarithm of their scale, [B,K], for ``sigmoid`` and ``logsigmoid`` of weights.

    Labels do not depend on each other: d sigmoid(z) = sigmoid(z) sigmoid(-z) dz, so y is a sum of
    logits, with factors of which the largest is 1.
    """
    z = logits[:, None]
    logs = -softplus(-z) - softplus(z)
    parts = []
    for side in (weights, -weights):
        part = torch.where(side > 0, side.clamp_min(0).log() + logs, -torch.inf)
        if score == "logsigmoid":
            total = _log_sum(-softplus(-z), side)
            part = part - torch.where(total == -torch.inf, 0.0, total)
        parts.append(part)
    # -inf gives NaN: all weights are zero.
    largest = torch.maximum(*parts).amax(-1, keepdim=True)
    factors = (parts[0] - largest).exp() - (parts[1] - largest).exp()
    return [(factors, z.expand_as(factors))], largest[..., 0]
