"""Contrasts: why a and not b, in memory and in artifacts; and targets that are refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import combicam
from combicam import ArtifactError, Explainer, contrast
from combicam.engine.explain.targets import read_targets

SIZE = (24, 20)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.SiLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 6),
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def images() -> Tensor:
    torch.manual_seed(1)
    return 2 * torch.randn(3, 3, *SIZE)


def signed_map(model: nn.Module, image: Tensor, y: Any, cut: int) -> tuple[Tensor, Tensor]:
    """The activations behind ``model[:cut]`` and their gradient, by autograd in float64."""
    model = copy.deepcopy(model).double()
    acts = model[:cut](image[None].double())  # type: ignore[index]
    acts = acts.detach().requires_grad_()
    (grad,) = torch.autograd.grad(y(model[cut:](acts)[0]), acts)  # type: ignore[index]
    return acts[0].detach(), grad[0]


@pytest.mark.parametrize("score", ["logprob", "prob", "logit"])
def test_gradients_of_a_contrast(score: str, network: nn.Module, images: Tensor) -> None:
    explainer = Explainer(network, SIZE, ["3"], "elementwise", score, keep_layers=True)
    a, b = torch.tensor([0, 3, 5]), torch.tensor([4, 1, 2])
    ab, ba = explainer(images, contrast(a, b)), explainer(images, contrast(b, a))
    for i in range(3):

        def y(z: Tensor, i: int = i) -> Tensor:
            s = {"logit": z, "prob": z.softmax(0), "logprob": z.log_softmax(0)}[score]
            return s[a[i]] - s[b[i]]

        acts, grad = signed_map(network, images[i], y, 4)
        for found, product in ((ab, acts * grad), (ba, -acts * grad)):
            expected = product.clamp(min=0).sum(0)
            assert expected.max() > 0
            error = (found.layer_maps["3"][i, 0] - expected).abs().max()
            assert error < 1e-5 * expected.max()
    p = ab.logits.softmax(-1)
    difference = p.gather(1, a[:, None]) - p.gather(1, b[:, None])
    torch.testing.assert_close(ab.scores, difference)
    torch.testing.assert_close(ba.scores, -difference)
    assert (ab.targets == -1).all()


def test_hirescam_of_a_minus_b_is_the_negative_of_b_minus_a(
    network: nn.Module, images: Tensor
) -> None:
    explainer = Explainer(network, SIZE, ["3"], "hirescam", keep_layers=True)
    ab, ba = explainer(images, contrast(2, 5)), explainer(images, contrast(5, 2))
    first, second = ab.layer_maps["3"], ba.layer_maps["3"]
    assert first.max() > 0 and second.max() > 0
    assert (torch.minimum(first, second) == 0).all()  # relu(x) and relu(-x)


def test_a_certain_network_is_still_contrasted(network: nn.Module, images: Tensor) -> None:
    model = copy.deepcopy(network)
    model[-1].bias.data[1] = 60.0  # type: ignore[union-attr, index, operator]
    certain = Explainer(model, SIZE, ["3"])
    assert (certain(images).scores == 1).all()
    for pair in (contrast(1, 4), contrast(3, 4), contrast(4, 1)):
        # The bias moves no gradient of a difference of logits.
        expected = Explainer(network, SIZE, ["3"])(images, pair).heatmaps
        found = certain(images, pair).heatmaps
        assert expected.amax() == 1 and (found - expected).abs().max() < 1e-4


def test_forms_of_a_contrast(network: nn.Module, images: Tensor) -> None:
    for a, b, shape in (
        (2, 0, (3, 1)),
        (2, [0, 1, 3], (3, 1)),
        (np.array([2, 3, 4]), 0, (3, 1)),
        ([[2, 1]] * 3, 0, (3, 2)),
        (torch.tensor([[2, 1]] * 3, dtype=torch.int32), [0, 3, 4], (3, 2)),
        ([[2, 1]] * 3, [[0, 4]] * 3, (3, 2)),
    ):
        weights, kind = read_targets(contrast(a, b), 3, 6)
        assert kind == "weights" and weights.shape == (*shape, 6)
        assert (weights.sum(-1) == 0).all() and (weights.abs().sum(-1) == 2).all()
    weights, _ = read_targets(contrast([[2, 1]] * 3, [0, 3, 4]), 3, 6)
    assert weights[1].tolist() == [[0, 0, 1, -1, 0, 0], [0, 1, 0, -1, 0, 0]]
    both = Explainer(network, SIZE, ["3"])(images, contrast([[2, 1]] * 3, [0, 3, 4]))
    assert both.heatmaps.shape[:2] == (3, 2)


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        (1, 1, "two different classes, got 1 twice"),
        ([0, 1, 2], [3, 1, 4], "got 1 twice"),
        (0, 6, r"b in 0\.\.5, got 6"),
        (-1, 2, r"a in 0\.\.5, got -1; the best classes are"),
        ([0, 1], 2, r"a as one class.*B=3 images, got shape \(2,\)"),
        ([[0, 1]] * 3, [[2, 3, 4]] * 3, "got K=2 and K=3"),
    ],
)
def test_contrasts_that_are_refused(a: Any, b: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_targets(contrast(a, b), 3, 6)


def test_contrasts_of_no_whole_numbers() -> None:
    for wrong in (1.0, True, [0.5]):
        with pytest.raises(TypeError, match="contrast: expected b as int, got torch"):
            contrast(0, wrong)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0.0, "all zeros for image 1, target 0"),
        (torch.nan, "NaN, infinity or a sum beyond float32 for image 1, target 0"),
        (-torch.inf, "NaN, infinity"),
        (3e38, "sum beyond float32"),
    ],
)
def test_weights_that_are_refused(value: float, words: str) -> None:
    weights = torch.ones(2, 1, 6)
    weights[1] = value
    with pytest.raises(ValueError, match=words):
        read_targets(weights, 2, 6)


@pytest.mark.parametrize(
    "score, suffix",
    [
        ("prob", ".onnx"),
        ("logprob", ".ts"),
        pytest.param("logprob", ".onnx", marks=pytest.mark.slow),
        pytest.param("prob", ".ts", marks=pytest.mark.slow),
    ],
)
def test_artifacts_answer_signed_weights(
    suffix: str, score: str, network: nn.Module, images: Tensor, tmp_path: Path
) -> None:
    explainer = Explainer(network, SIZE, ["1", "3"], score=score, targets=2)
    path = tmp_path / f"model{suffix}"
    combicam.export(explainer, path, target_input="weights")
    loaded = Explainer.load(path)
    torch.manual_seed(2)
    signed = torch.randn(3, 2, 6)
    signed[0, 1] = -signed[0, 1].abs()  # against alone
    signed[1, 0] = signed[1, 0].abs()  # for alone
    for targets in (signed, contrast([[2, 0]] * 3, [3, 4, 5])):
        ours, theirs = loaded(images, targets), explainer(images, targets)
        assert theirs.heatmaps.amax((2, 3)).eq(1).sum() >= 5  # few are flat
        torch.testing.assert_close(ours.heatmaps, theirs.heatmaps, atol=1e-4, rtol=0)
        torch.testing.assert_close(ours.scores, theirs.scores, atol=1e-6, rtol=1e-4)
    with pytest.raises(ArtifactError, match="'weights' with K=1"):
        loaded(images, contrast(0, 1))
    zeros = [t.contiguous() for t in (images, torch.zeros(3, 2, 6))]
    *_, ranges = loaded.session.execute(loaded.session.top)(zeros)
    assert ranges.isnan().all()  # the file itself says that it has no answer
