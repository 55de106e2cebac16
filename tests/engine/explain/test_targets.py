"""Ranks and contrasts, in memory and in artifacts; and targets that are refused."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import combicam
from combicam import ArtifactError, Explainer, contrast
from combicam.engine.explain.targets import read_targets
from combicam.export.formats.artifact import Description, write_artifact
from combicam.export.trace import scores
from combicam.export.trace.reference import eager_reference

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


@pytest.mark.slow
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


@pytest.mark.long
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


# No rank is its column's in all images; two columns may ask for one class.
RANKS = [[-1, -2, -3], [-6, 0, -1], [-3, -3, 5]]


def by_numpy(logits: Tensor, targets: Any) -> Tensor:
    """Negative numbers index the classes sorted by score."""
    rows = zip(logits.detach().numpy().argsort(-1), targets, strict=True)
    return torch.tensor([[int(row[t]) if t < 0 else t for t in wanted] for row, wanted in rows])


@pytest.mark.parametrize("method", ["gradcam", "scorecam"])
def test_negative_classes_rank_in_any_column(
    method: str, network: nn.Module, images: Tensor
) -> None:
    explainer = Explainer(network, SIZE, ["3"], method)
    logits = explainer(images).logits
    found = explainer(images, RANKS)
    assert torch.equal(found.targets, by_numpy(logits, RANKS))
    named = explainer(images, found.targets)
    torch.testing.assert_close(found.heatmaps, named.heatmaps, atol=1e-6, rtol=0)
    assert torch.equal(explainer(images, -2).targets, logits.argsort(-1)[:, -2:-1])
    assert torch.equal(explainer(images, -6).targets[:, 0], logits.argmin(-1))
    for wrong, got in ((-7, "-7"), ([[0, -7]] * 3, "-7"), (6, "6")):
        with pytest.raises(ValueError, match=rf"class >= -6 and < 6 .*got {got}"):
            explainer(images, wrong)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".onnx", ".ts", pytest.param(".pt2", marks=pytest.mark.slow)])
def test_negative_classes_rank_in_files(
    suffix: str, network: nn.Module, images: Tensor, tmp_path: Path
) -> None:
    explainer = Explainer(network, SIZE, ["1", "3"], targets=3)
    path = tmp_path / f"model{suffix}"
    combicam.export(explainer, path)
    loaded = Explainer.load(path)
    best, ranked = loaded(images), loaded(images, RANKS)
    assert torch.equal(best.targets, by_numpy(best.logits, [[-1, -2, -3]] * 3))
    assert torch.equal(ranked.targets, by_numpy(best.logits, RANKS))
    expected = explainer(images, ranked.targets)
    torch.testing.assert_close(ranked.heatmaps, expected.heatmaps, atol=1e-4, rtol=0)
    joint = explainer.session.joint(explainer.session.top)  # type: ignore[attr-defined]
    reference = eager_reference(network, joint)([images, torch.tensor(RANKS)])
    assert torch.equal(reference[1], ranked.targets)
    # What is refused in memory means the worst class in a file.
    below = torch.tensor([[-7, -100, -(2**62)]] * 3)
    chosen = loaded.session.execute(loaded.session.top)([images, below])[1]
    assert torch.equal(chosen, best.logits.argmin(-1)[:, None].expand(3, 3))


def by_column(logits: Tensor, targets: Tensor | None, count: int) -> Tensor:
    """What files of format 1 hold."""
    chosen = logits.detach().topk(count, -1).indices
    return chosen if targets is None else torch.where(targets < 0, chosen, targets)


@pytest.mark.parametrize("suffix", [".onnx", ".ts"])
def test_files_of_format_1_are_asked_as_they_understand(
    suffix: str,
    network: nn.Module,
    images: Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / f"old{suffix}"
    with monkeypatch.context() as patch:
        patch.setattr(scores, "explained_classes", by_column)
        explainer = Explainer(network, SIZE, ["3"], targets=3)
        joint = explainer.session.joint(explainer.session.top)  # type: ignore[attr-defined]
    write_artifact(joint, replace(explainer.description, format=1), path)
    loaded = Explainer.load(path)
    assert loaded.description.format == 1
    raw = torch.full((3, 3), -1)  # the file itself ranks by column
    best = loaded.session.execute(loaded.session.top)([images, raw])[1]
    assert torch.equal(best, by_numpy(loaded(images).logits, [[-1, -2, -3]] * 3))
    assert torch.equal(loaded(images).targets, best)
    mixed = loaded(images, [[4, -2, -3]] * 3).targets
    assert torch.equal(mixed, torch.cat([torch.full((3, 1), 4), best[:, 1:]], 1))
    with pytest.raises(ArtifactError, match=r"a class or -2 in column 1 of targets, got -1"):
        loaded(images, [[0, -2, -3], [0, -1, -3], [0, 1, 2]])


def test_formats_of_files() -> None:
    explainer = Explainer(nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
                          (8, 8), ["0"])  # fmt: skip
    for known in (1, 2):
        text = replace(explainer.description, format=known).to_json()
        assert Description.from_json(text).format == known
    assert explainer.description.format == 2
    with pytest.raises(ArtifactError, match=r"format <= 3, got 4, .*; update combicam"):
        Description.from_json(replace(explainer.description, format=4).to_json())
