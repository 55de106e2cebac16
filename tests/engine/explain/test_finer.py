"""Finer-CAM: a class against the classes that are most similar, in float64 and in files."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from cam_oracle import gradcam
from torch import Tensor, nn

from combicam import ArtifactError, CamSpec, Explainer, TraceError, contrast, export, finer

SIZE = (20, 24)


@pytest.fixture(scope="module")
def network() -> nn.Sequential:
    torch.manual_seed(2)
    features = [nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Conv2d(8, 12, 3, 2), nn.SiLU()]
    model = nn.Sequential(*features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 6))
    model[-1].weight.data *= 20  # type: ignore[operator]
    return model.eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(4, 3, *SIZE, generator=torch.Generator().manual_seed(3))


def layer_map(
    network: nn.Module, image: Tensor, c: int, k: int, alpha: float, weights: str, score: str
) -> Tensor:
    """The last layer's map of one image, by the words of the docstring."""
    model: Any = copy.deepcopy(network).double()
    acts = model[:4](image[None].double()).requires_grad_()
    logits = model[4:](acts)[0]
    others = [i for i in range(len(logits)) if i != c]
    others.sort(key=lambda i: abs(float(logits.detach()[i] - logits.detach()[c])))
    others = others[:k]
    s = logits if score == "logit" else logits.log_softmax(0)
    total = sum(logits[i].exp() for i in others)
    y = s[c]
    for i in others:
        w = logits[i].exp() / total if weights == "softmax" else 1 / k
        y = y - alpha * w * s[i]
    (grads,) = torch.autograd.grad(y, acts)
    return gradcam(acts.detach(), grads)[0]


@pytest.mark.parametrize(
    ("k", "alpha", "weights", "score"),
    [(3, 1.0, "softmax", "logprob"), (2, 0.6, "mean", "logit"), (5, 0.3, "softmax", "logprob")],
)
def test_equals_the_formula(
    k: int, alpha: float, weights: str, score: str, network: nn.Module, images: Tensor
) -> None:
    explainer = Explainer(network, SIZE, ["3"], score=score, targets=2, keep_layers=True)
    found = explainer(images, targets=finer(k, alpha, weights))
    assert torch.equal(found.targets, found.logits.topk(2).indices)
    p = found.logits.softmax(-1).gather(1, found.targets)
    torch.testing.assert_close(found.scores, p)
    for b in range(4):
        for j in range(2):
            c = int(found.targets[b, j])
            expected = layer_map(network, images[b], c, k, alpha, weights, score)
            assert expected.max() > 0
            error = (found.layer_maps["3"][b, j] - expected).abs().max()
            assert error < 1e-5 * expected.max()


def test_given_classes_and_ranks(network: nn.Module, images: Tensor) -> None:
    explainer = Explainer(network, SIZE, ["3"])
    best = explainer(images, targets=finer(2))
    ids = best.targets
    for classes in (ids, ids[:, 0], [-1] * 4, -1):
        again = explainer(images, targets=finer(2, classes=classes))
        torch.testing.assert_close(again.heatmaps, best.heatmaps, atol=1e-5, rtol=0)
    assert explainer(images, targets=finer(2, classes=[[0, 4]] * 4)).heatmaps.shape[1] == 2
    # One similar class is a contrast of two.
    second = best.logits.topk(2).indices[:, 1]
    pair = explainer(images, targets=contrast(ids[:, 0], second))
    one = explainer(images, targets=finer(1))
    torch.testing.assert_close(one.heatmaps, pair.heatmaps, atol=1e-5, rtol=0)


@pytest.mark.parametrize("gap", [100.0, 10_000.0])
def test_a_certain_network(gap: float, network: nn.Module, images: Tensor) -> None:
    """A bias for the best class moves no difference of logits."""
    model: Any = copy.deepcopy(network)
    model[-1].bias.data[4] = gap
    found = Explainer(model, SIZE, ["3"])(images, targets=finer(3))
    assert (found.scores == 1).all() and not found.flat.any()
    exact = Explainer(model.double(), SIZE, ["3"])(images, targets=finer(3))
    torch.testing.assert_close(found.heatmaps, exact.heatmaps, atol=1e-2, rtol=0)


@pytest.mark.long
def test_as_a_spec_and_in_files(network: nn.Module, images: Tensor, tmp_path: Path) -> None:
    explainer = Explainer(network, SIZE, ["3"], finer=3, targets=2)
    assert CamSpec.from_json(explainer.spec.to_json()).finer == 3
    by_call = Explainer(network, SIZE, ["3"], targets=2)(images, targets=finer(3))
    found = explainer(images)
    torch.testing.assert_close(found.heatmaps, by_call.heatmaps)
    for suffix in (".onnx", ".ts"):
        export(explainer, tmp_path / f"m{suffix}")
        loaded = Explainer.load(tmp_path / f"m{suffix}")
        for targets in (None, finer(3)):
            again = loaded(images[:3], targets=targets)
            torch.testing.assert_close(again.heatmaps, found.heatmaps[:3], atol=1e-4, rtol=0)
    with pytest.raises(ArtifactError, match=r"finer=3.*got finer=2.*export"):
        loaded(images, targets=finer(2))


@pytest.mark.parametrize("method", ["scorecam", "ablationcam"])
def test_forward_only_methods(method: str, network: nn.Module, images: Tensor) -> None:
    """The similar classes are those of the whole image."""
    explainer = Explainer(network, SIZE, ["3"], method, score="logit", keep_layers=True)
    found = explainer(images, targets=finer(1))
    assert (found.heatmaps - explainer(images).heatmaps).abs().max() > 1e-2
    pair = found.logits.topk(2).indices
    same = explainer(images, targets=contrast(pair[:, 0], pair[:, 1]))
    torch.testing.assert_close(found.heatmaps, same.heatmaps, atol=1e-4, rtol=0)


def test_what_is_refused(network: nn.Module, images: Tensor) -> None:
    for wrong in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="similar as an int >= 1"):
            finer(wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="got weights"):
        finer(2, classes=torch.ones(6))
    explainer = Explainer(network, SIZE, ["3"])
    with pytest.raises(TraceError, match="finer < 6"):
        explainer(images, targets=finer(6))
    with pytest.raises(ValueError, match="finer_weights"):
        explainer(images, targets=finer(2, weights="median"))
    with pytest.raises(ValueError, match=r"score in \['logit', 'logprob'\] with finer"):
        Explainer(network, SIZE, ["3"], score="prob", finer=2)
    with pytest.raises(TraceError, match="no similar classes"):
        Explainer(network, SIZE, ["3"], finer=2)(images, targets=torch.ones(6))
