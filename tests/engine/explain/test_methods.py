"""Methods in the joint graph and in files: K targets, other batches, several layers, float64."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import cam_oracle
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from combicam import CamSpec, Explainer, export
from combicam.export.trace.scores import best_classes
from combicam.export.trace.snapshot import snapshot
from combicam.export.trace.trace import trace

SIZE = (24, 32)
LAYERS = ["3", "6"]  # 40 channels on 140 pixels, and 48 on 24


def network() -> nn.Sequential:
    """It is not piecewise linear."""
    torch.manual_seed(0)
    features = [nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Conv2d(8, 40, 3, 2), nn.SiLU()]
    features += [nn.Conv2d(40, 48, 3, 2), nn.BatchNorm2d(48), nn.SiLU()]
    head = nn.Linear(48, 7)
    model = nn.Sequential(*features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    cam_oracle.calibrated(model, SIZE)
    with torch.no_grad():
        head.weight *= 10
    return model


def photos(count: int = 3) -> Tensor:
    return torch.randn(count, 3, *SIZE, generator=torch.Generator().manual_seed(1))


def errors(found: Tensor, classes: Tensor, method: str) -> Tensor:
    """Per image and target, the largest difference from float64 [B,K]."""
    model = copy.deepcopy(network()).double()
    each = []
    for k in range(classes.shape[1]):
        expected = cam_oracle.combi_cam(
            model, LAYERS, photos().double(), classes[:, k], method, "logprob"
        )
        each.append((found[:, k] - expected).abs().amax((1, 2)))
    return torch.stack(each, 1)


@pytest.mark.long
@pytest.mark.parametrize("method", ["eigencam", "eigengradcam", "shapleycam"])
def test_in_memory_and_in_files(method: str, tmp_path: Path) -> None:
    explainer = Explainer(network(), SIZE, LAYERS, method, targets=2, keep_layers=True)
    found = explainer(photos())
    assert errors(found.heatmaps, found.targets, method).max() < 1e-4
    assert list(found.layer_maps) == LAYERS
    by_class = explainer(photos(), targets=found.targets.flip(1))
    torch.testing.assert_close(by_class.heatmaps, found.heatmaps.flip(1), atol=1e-5, rtol=0)
    for suffix in (".onnx", ".ts"):
        export(explainer, tmp_path / f"model{suffix}")
        loaded = Explainer.load(tmp_path / f"model{suffix}")(photos())
        torch.testing.assert_close(loaded.heatmaps, found.heatmaps, atol=1e-4, rtol=0)
        for name, layer_map in found.layer_maps.items():
            torch.testing.assert_close(
                loaded.layer_maps[name], layer_map, atol=1e-5, rtol=1e-3, msg=name
            )


@pytest.mark.parametrize("method", ["eigengradcam", "shapleycam"])
def test_in_bfloat16(method: str) -> None:
    found = Explainer(network(), SIZE, LAYERS, method, dtype="bfloat16")(photos())
    assert found.heatmaps.dtype == torch.float32
    assert (
        errors(found.heatmaps, found.targets, method).median() < 0.05
    )  # singular values are close


def test_eigencam_takes_no_gradients() -> None:
    """All targets have one map, and the graph has no backward."""
    explainer = Explainer(network(), SIZE, LAYERS, "eigencam", targets=2)
    found = explainer(photos())
    assert torch.equal(found.heatmaps[:, 0], found.heatmaps[:, 1])
    graph = explainer.session.joint(explainer.session.top).module.graph  # type: ignore[attr-defined]
    assert not [n for n in graph.nodes if "backward" in str(n.target)]
    assert not (found.ranges[:, 0, 1] == 0).any()


@pytest.mark.parametrize("score", ["prob", "logit"])
def test_shapleycam_of_other_scores(score: str) -> None:
    explainer = Explainer(network(), SIZE, LAYERS, "shapleycam", score)
    found = explainer(photos())
    model = copy.deepcopy(network()).double()
    classes = found.targets[:, 0]
    expected = cam_oracle.combi_cam(model, LAYERS, photos().double(), classes, "shapleycam", score)
    assert (found.heatmaps[:, 0] - expected).abs().max() < 1e-4
    plain = cam_oracle.combi_cam(model, LAYERS, photos().double(), classes, "gradcam", score)
    assert (plain - expected).abs().max() > 1e-2


@pytest.mark.parametrize("score", ["logprob", "prob"])
@pytest.mark.parametrize("gap", [30, 10_000])
def test_shapleycam_of_a_certain_network(gap: int, score: str) -> None:
    """With u the log-odds, g and H their derivatives, and d the derivative of log ds/du by u:

    the score's second derivative is ds/du (H + d g g'), with d = -p of log p and 1 - 2 p of p.
    """
    model = network()
    model[-1].bias.data[3] += gap
    found = Explainer(model, SIZE, LAYERS[-1:], "shapleycam", score, keep_layers=True)(photos())
    exact: Any = copy.deepcopy(model).double()
    acts = exact[:7](photos().double()).detach().requires_grad_()
    z = exact[7:](acts)
    u = z[:, 3] - z[:, [0, 1, 2, 4, 5, 6]].logsumexp(1)
    (g,) = torch.autograd.grad(u.sum(), acts, create_graph=True)
    along = (g * acts.detach()).sum((1, 2, 3), keepdim=True)
    (twice,) = torch.autograd.grad(along.sum(), acts)
    p = u.sigmoid()[:, None, None, None]
    d = -p if score == "logprob" else 1 - 2 * p
    w = (g - 0.5 * (twice + d * along * g)).mean((2, 3), keepdim=True)
    expected = (w * acts).sum(1).clamp(min=0).detach()
    assert not found.flat.any() and (expected.amax((1, 2)) > 0).all()
    top = found.layer_maps[LAYERS[-1]][:, 0].amax((1, 2), keepdim=True)
    scaled = found.layer_maps[LAYERS[-1]][:, 0] / top
    torch.testing.assert_close(
        scaled.double(), expected / expected.amax((1, 2), keepdim=True), atol=1e-2, rtol=0
    )


@pytest.mark.parametrize("score", ["prob", "logprob", "logsigmoid"])
def test_shapleycam_of_regions(score: str) -> None:
    """The second derivative goes through the factors of the log-odds, too."""
    explainer = Explainer(network(), SIZE, LAYERS, "shapleycam", score, keep_layers=True)
    weights = torch.tensor([0.5, 1, 0, 0, -0.7, 0, 0.0])
    for v in (weights, weights.clamp(min=0)):
        found = explainer(photos(), targets=v)
        exact: Any = copy.deepcopy(network()).double()
        for name in LAYERS:
            split = int(name) + 1
            acts = exact[:split](photos().double()).detach().requires_grad_()
            z = exact[split:](acts)
            p = z.sigmoid() if score == "logsigmoid" else z.softmax(-1)
            plus, minus = (p @ v.double().clamp(min=0)), (p @ (-v.double()).clamp(min=0))
            y = plus - minus
            if score != "prob":
                y = plus.log() - (minus.log() if (v < 0).any() else 0)
            (g,) = torch.autograd.grad(y.sum(), acts, create_graph=True)
            (twice,) = torch.autograd.grad((g * acts.detach()).sum(), acts)
            w = (g - 0.5 * twice).mean((2, 3), keepdim=True)
            expected = (w * acts).sum(1).clamp(min=0).detach()
            error = (found.layer_maps[name][:, 0] - expected).abs().max()
            assert error < 1e-5 * expected.max()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenet_v3_small", "resnet18"])
def test_shapleycam_of_networks(name: str) -> None:
    torch.manual_seed(0)
    model = cam_oracle.calibrated(getattr(torchvision.models, name)(), (64, 64)).double()
    joint = trace(snapshot(model), CamSpec("stages", "shapleycam"), (64, 64))
    images = torch.randn(2, 3, 64, 64)
    _, classes, _, heatmaps, _ = joint.module(images, best_classes(2, 1))
    for module in model.modules():  # torch has no second derivative of it
        if isinstance(module, nn.Hardsigmoid):
            module.forward = lambda x: F.relu6(x + 3) / 6  # type: ignore[method-assign]
    names = [info.name for info in joint.layers]
    expected = cam_oracle.combi_cam(
        model, names, images.double(), classes[:, 0], "shapleycam", "logprob"
    )
    assert (heatmaps[:, 0] - expected).abs().max() < 1e-4


@pytest.mark.long
@pytest.mark.parametrize("smooth", ["flips", "flips+intensities"])
def test_smoothed_heatmaps_are_means_of_views(smooth: str, tmp_path: Path) -> None:
    values = {"layers": LAYERS, "method": "layercam", "targets": 2, "keep_layers": True}
    plain = Explainer(network(), SIZE, **values)  # type: ignore[arg-type]
    explainer = Explainer(network(), SIZE, smooth=smooth, **values)  # type: ignore[arg-type]
    found, own = explainer(photos()), plain(photos())
    torch.testing.assert_close(found.logits, own.logits, atol=1e-5, rtol=1e-5)
    assert torch.equal(found.targets, own.targets)
    heatmaps, maps = [], []
    for factor in (1, 0.9, 1.1) if "+" in smooth else (1,):
        for flip in (False, True):
            view = factor * (photos().flip(-1) if flip else photos())
            one = plain(view, targets=own.targets)
            heatmaps.append(one.heatmaps.flip(-1) if flip else one.heatmaps)
            maps.append(one.layer_maps["6"].flip(-1) if flip else one.layer_maps["6"])
    torch.testing.assert_close(found.heatmaps, torch.stack(heatmaps).mean(0), atol=1e-4, rtol=0)
    torch.testing.assert_close(
        found.layer_maps["6"], torch.stack(maps).mean(0), atol=1e-6, rtol=1e-4
    )
    by_weights = explainer(photos(), targets=F.one_hot(own.targets, 7).float())
    torch.testing.assert_close(by_weights.heatmaps, found.heatmaps, atol=1e-4, rtol=0)
    if smooth == "flips":
        for suffix in (".onnx", ".ts"):
            export(explainer, tmp_path / f"model{suffix}")
            loaded = Explainer.load(tmp_path / f"model{suffix}")(photos())
            torch.testing.assert_close(loaded.heatmaps, found.heatmaps, atol=1e-4, rtol=0)


@pytest.mark.parametrize("method", ["scorecam", "ablationcam"])
def test_smoothed_heatmaps_without_gradients(method: str) -> None:
    plain = Explainer(network(), SIZE, LAYERS[-1:], method)
    found = Explainer(network(), SIZE, LAYERS[-1:], method, smooth="flips")(photos())
    own = plain(photos())
    mirrored = plain(photos().flip(-1), targets=own.targets).heatmaps.flip(-1)
    torch.testing.assert_close(found.heatmaps, (own.heatmaps + mirrored) / 2, atol=1e-4, rtol=0)
