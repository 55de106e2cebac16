"""A hundred thousand classes: long sums and tiny probabilities, right to 1e-5 in every format."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from combicam import Explainer, Explanation, export

SIZE, CLASSES = (12, 10), 100_000
IMAGES = torch.randn(3, 3, *SIZE, generator=torch.Generator().manual_seed(2))


class Wide(nn.Module):
    """One layer, and logits around -6: probabilities of 1e-5, and sigmoids of 2e-3."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, CLASSES)
        with torch.no_grad():
            self.head.bias -= 6

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.conv(x).sigmoid().mean((2, 3)))
        return logits


def check(found: Explanation, model: nn.Module, score: str, weights: Tensor | None = None) -> None:
    """Scores, and the map of the layer relative to its largest value, by autograd in float64."""
    acts = model.conv(IMAGES.double()).requires_grad_()
    logits = model.head(acts.sigmoid().mean((2, 3)))
    p = logits.sigmoid() if score.endswith("sigmoid") else logits.softmax(-1)
    picked = torch.ones(()) if weights is None else weights[:, 0].double()
    if weights is None:
        picked = torch.nn.functional.one_hot(found.targets[:, 0], CLASSES)
    probability, logit = (picked * p).sum(-1), (picked * logits).sum(-1)
    y = {"logit": logit, "prob": probability, "sigmoid": probability}.get(score, probability.log())
    (grads,) = torch.autograd.grad(y.sum(), acts)
    expected = (grads * acts.detach()).relu().sum(1)
    torch.testing.assert_close(found.scores[:, 0].double(), probability.detach(), rtol=1e-5, atol=0)
    error = (found.layer_maps["conv"][:, 0] - expected).abs().amax((1, 2))
    assert (error < 1e-5 * expected.amax((1, 2))).all(), (score, error / expected.amax((1, 2)))


def explainer_of(model: nn.Module, score: str, dtype: str | None = None) -> Explainer:
    return Explainer(
        model,
        SIZE,
        layers=["conv"],
        method="elementwise",
        score=score,
        keep_layers=True,
        dtype=dtype,
    )


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return Wide().eval()


@pytest.mark.parametrize(
    ("score", "suffix"),
    [("logprob", ".onnx"), ("prob", ".ts"), ("logit", ".ts"), ("sigmoid", ".onnx")],
)
def test_every_score_in_memory_and_in_files(
    score: str, suffix: str, model: nn.Module, tmp_path: Path
) -> None:
    exact, explainer = copy.deepcopy(model).double(), explainer_of(model, score)
    check(explainer(IMAGES), exact, score)
    export(explainer, tmp_path / f"wide{suffix}", verify=0)
    check(Explainer.load(tmp_path / f"wide{suffix}")(IMAGES), exact, score)
    if suffix == ".onnx":
        pytest.importorskip("openvino")
        loaded = Explainer.load(tmp_path / "wide.onnx", backend="openvino")
        check(loaded(IMAGES), exact, score)


@pytest.mark.long
@pytest.mark.parametrize("score", ["logprob", "logsigmoid"])
def test_regions_of_half_the_classes(score: str, model: nn.Module, tmp_path: Path) -> None:
    exact, explainer = copy.deepcopy(model).double(), explainer_of(model, score)
    # Not random classes: the gradients of their sum and of the others' would cancel.
    weights = (exact.head.weight[:, 0] > 0).float().expand(3, 1, -1).contiguous()
    export(explainer, tmp_path / "wide.onnx", target_input="weights", verify=0)
    check(explainer(IMAGES, weights), exact, score, weights)
    check(Explainer.load(tmp_path / "wide.onnx")(IMAGES, weights), exact, score, weights)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_as_right_as_its_logits(dtype: str, model: nn.Module) -> None:
    found = explainer_of(model, "logprob", dtype)(IMAGES)
    p = found.logits.double().softmax(-1).gather(-1, found.targets)
    torch.testing.assert_close(found.scores.double(), p, rtol=1e-5, atol=0)
    full = explainer_of(model, "logprob")(IMAGES, found.targets)
    assert (found.heatmaps - full.heatmaps).abs().mean() < 0.02
