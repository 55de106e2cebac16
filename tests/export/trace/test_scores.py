"""Scores against autograd in float64, by the definition; what rounding must not take away."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from combicam.export.trace.scores import (
    MOST_RANKS,
    best_classes,
    explained_classes,
    last_rank,
    log_odds,
    target_scores,
)

SCORES = ["logit", "prob", "logprob", "sigmoid", "logsigmoid"]


def by_definition(logits: Tensor, v: Tensor, score: str) -> Tensor:
    """The score of one image and one weight vector, float64."""
    p = logits.sigmoid() if "sigmoid" in score else logits.softmax(-1)
    if score == "logit":
        return (v * logits).sum()
    plus, minus = (v.clamp(min=0) * p).sum(), (v.clamp(max=0).abs() * p).sum()
    if score in ("prob", "sigmoid"):
        return plus - minus
    y = plus.log() if (v > 0).any() else logits.sum() * 0
    return y - minus.log() if (v < 0).any() else y


def gradient(logits: Tensor, v: Tensor, score: str) -> Tensor:
    """Of every image and target, [B,K,n]."""
    z = logits.clone().requires_grad_()
    odds = log_odds(z, v, score, "weights")
    y, scale = odds.y, odds.scale
    per_target = [torch.autograd.grad(c, z, retain_graph=True)[0] for c in y.sum(0)]
    grads = torch.stack(per_target, 1)
    return grads if scale is None else grads * scale[..., None]


def mixed_weights() -> Tensor:
    """Both signs, a contrast, a region, a single class, and either of them against: [6,1,7]."""
    torch.manual_seed(0)
    v = torch.zeros(6, 1, 7)
    v[0] = torch.randn(7)
    v[1, 0, 2], v[1, 0, 5] = 1, -1
    v[2, 0, :3] = torch.rand(3) * 4
    v[3, 0, 4] = 1
    v[4, 0, 1:4] = -torch.rand(3)
    v[5, 0, 6] = -2.5
    return v


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("scale", [1.0, 6.0])
def test_weights_of_both_signs(score: str, scale: float) -> None:
    v = mixed_weights()
    torch.manual_seed(1)
    logits = scale * torch.randn(6, 7)
    found = gradient(logits, v, score)
    _, chosen, probability = target_scores(logits, v, score, "weights", 1)
    assert (chosen == -1).all()
    for b in range(6):
        z = logits[b].double().requires_grad_()
        (expected,) = torch.autograd.grad(by_definition(z, v[b, 0].double(), score), z)
        torch.testing.assert_close(found[b, 0].double(), expected, atol=1e-7, rtol=1e-5)
        probability_of = "sigmoid" if "sigmoid" in score else "prob"
        difference = by_definition(z, v[b, 0].double(), probability_of)
        torch.testing.assert_close(probability[b, 0].double(), difference, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("score", SCORES)
def test_the_opposite_weights_have_the_opposite_gradient(score: str) -> None:
    v, logits = mixed_weights(), torch.randn(6, 7)
    torch.testing.assert_close(
        gradient(logits, -v, score), -gradient(logits, v, score), atol=1e-7, rtol=1e-6
    )


def test_values_differ_by_a_constant_of_the_weights() -> None:
    """What Score-CAM needs: it softmaxes them."""
    v = mixed_weights()[:1].expand(5, -1, -1)
    logits = torch.randn(5, 7)
    y = target_scores(logits, v, "logprob", "weights", 1)[0][:, 0]
    expected = torch.stack([by_definition(z.double(), v[0, 0].double(), "logprob") for z in logits])
    offset = y.double() - expected
    torch.testing.assert_close(offset, offset[:1].expand(5), atol=1e-6, rtol=0)


def test_a_certain_network_has_its_exact_gradient() -> None:
    """A margin of 60: every probability but one rounds to 0, and 1 - p to 0."""
    logits = torch.tensor([[60.0, 0.0, -1.0, 0.5]])
    v = torch.zeros(1, 4, 4)
    v[0, 0] = torch.tensor([1.0, -1.0, 0, 0])  # sure against impossible
    v[0, 1] = torch.tensor([0, 1.0, -1.0, 0])  # impossible against impossible
    v[0, 2] = torch.tensor([1.0, 0, -0.5, -0.5])
    v[0, 3] = torch.tensor([-1.0, 0, 0, 0])  # against what is sure
    found = gradient(logits, v, "logprob")[0]
    assert torch.equal(found[0], v[0, 0]) and torch.equal(found[1], v[0, 1])
    for k in (2, 3):
        z = logits[0].double().requires_grad_()
        if k == 2:
            (expected,) = torch.autograd.grad(by_definition(z, v[0, 2].double(), "logprob"), z)
        else:  # -d log p = -(1 - p) d(z_0 - log of the others)
            rest = z[1:].logsumexp(0)
            (expected,) = torch.autograd.grad(rest - z[0], z)
            expected = expected * torch.sigmoid(rest - z[0]).detach()
        torch.testing.assert_close(found[k].double(), expected, atol=1e-36, rtol=1e-5)
    assert found.abs().amax(-1).min() > 1e-27


@pytest.mark.parametrize("score", SCORES[1:])
def test_no_weight_at_all_is_not_a_number(score: str) -> None:
    """In a file nothing refuses it: its map must not look like an answer."""
    logits = torch.randn(2, 7)
    v = mixed_weights()[:2].clone()
    v[1] = 0
    found = gradient(logits, v, score)
    assert found[0].isfinite().all() and found[1].isnan().all()


def test_ranks_are_numpys_indices_of_the_sorted_classes() -> None:
    logits = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    targets = torch.randint(-9, 9, (4, 25), generator=torch.Generator().manual_seed(1))
    order = logits.numpy().argsort(-1)
    found = explained_classes(logits, targets[:, :7], 7)
    for b in range(4):
        for k in range(7):
            t = int(targets[b, k])
            assert int(found[b, k]) == (order[b][t] if t < 0 else t)
    best = best_classes(4, 7)
    assert best.tolist() == [[-1, -2, -3, -4, -5, -6, -7]] * 4 and best.is_contiguous()
    assert torch.equal(explained_classes(logits, best, 7), explained_classes(logits, None, 7))


def test_many_classes_are_not_ranked_to_the_last() -> None:
    classes = 2 * MOST_RANKS
    logits = torch.randperm(classes, generator=torch.Generator().manual_seed(0))[None].float()
    order = logits[0].argsort()
    targets = torch.tensor([[-1, -MOST_RANKS, -MOST_RANKS - 1, -classes, 5]])
    last = order[-MOST_RANKS]
    expected = torch.stack([order[-1], last, last, last, torch.tensor(5)])
    assert torch.equal(explained_classes(logits, targets, 5)[0], expected)
    assert last_rank(classes, 5) == MOST_RANKS and last_rank(9, 5) == 9
    # But K best classes are always there.
    many = MOST_RANKS + 10
    found = explained_classes(logits, best_classes(1, many), many)
    assert torch.equal(found[0], order.flip(0)[:many])
