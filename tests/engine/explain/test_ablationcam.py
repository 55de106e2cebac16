"""Ablation-CAM: against a computation by hand, channel by channel, and against pytorch-grad-cam."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cam_oracle import unit
from torch import Tensor, nn

from combicam import Explainer, LoadedModel, TraceError, contrast, export

SIZE = (20, 24)
LAYERS = ["1", "3"]


def network() -> nn.Sequential:
    torch.manual_seed(4)
    # In place behind a layer: what is ablated is what the module returned.
    features = [nn.Conv2d(3, 6, 3, 2), nn.BatchNorm2d(6), nn.ReLU(inplace=True)]
    features += [nn.Conv2d(6, 8, 3, 2), nn.SiLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    model = nn.Sequential(*features, nn.Linear(32, 5))
    model[-1].weight.data *= 10  # type: ignore[operator]
    return model.eval()


def photos() -> Tensor:
    return torch.randn(3, 3, *SIZE, generator=torch.Generator().manual_seed(5))


def score_of(logits: Tensor, c: int, score: str) -> Tensor:
    if score == "prob":
        return logits.softmax(-1)[c]
    return (logits.log_softmax(-1) if score == "logprob" else logits)[c]


def by_hand(model: Any, image: Tensor, c: int, score: str) -> dict[str, Tensor]:
    maps = {}
    with torch.no_grad():
        whole = score_of(model(image[None])[0], c, score)
        for name in LAYERS:
            split = int(name) + 1
            acts = model[:split](image[None]).clone()
            drops = []
            for channel in range(acts.shape[1]):
                without = acts.clone()
                without[:, channel] = 0
                drops.append(whole - score_of(model[split:](without)[0], c, score))
            maps[name] = (torch.stack(drops)[:, None, None] * acts[0]).sum(0).clamp(min=0)
    return maps


@pytest.mark.parametrize("score", ["logprob", "prob", "logit"])
def test_against_a_computation_by_hand(score: str) -> None:
    model = network()
    explainer = Explainer(
        model, SIZE, LAYERS, "ablationcam", score, targets=2, keep_layers=True, chunk=5
    )
    found = explainer(photos())
    exact = copy.deepcopy(model).double()
    for b in range(3):
        for k in range(2):
            expected = by_hand(exact, photos()[b].double(), int(found.targets[b, k]), score)
            total = torch.zeros(1, 1, *SIZE, dtype=torch.float64)
            for name, layer_map in expected.items():
                assert layer_map.max() > 0
                error = (found.layer_maps[name][b, k] - layer_map).abs().max()
                assert error < 1e-5 * layer_map.max() + 1e-6
                total += F.interpolate(
                    layer_map[None, None], SIZE, mode="bilinear", align_corners=True
                )
            assert (found.heatmaps[b, k] - unit(total)[0, 0]).abs().max() < 1e-4


@pytest.mark.parametrize("score", ["logprob", "prob"])
@pytest.mark.parametrize("gap", [1, 30, 100])
def test_a_certain_network(gap: int, score: str) -> None:
    """1 - p rounds to 0 in float32 from a gap of 17 on; in float64 it is as small as 1e-300."""
    model: Any = network()
    bias = model[-1].bias
    bias.data[2] += gap
    found = Explainer(model, SIZE, LAYERS, "ablationcam", score)(photos(), targets=2)
    exact = copy.deepcopy(model).double()
    for b in range(3):
        # log p by hand, since float64's softmax rounds as well: log p = -log(1 + e^-u)
        with torch.no_grad():
            maps = []
            for name in LAYERS:
                split = int(name) + 1
                acts = exact[:split](photos()[b : b + 1].double()).clone()
                each = acts.repeat(acts.shape[1], 1, 1, 1)
                each[range(len(each)), range(len(each))] = 0
                logits = exact[split:](torch.cat([acts, each]))
                rest = logits[:, [0, 1, 3, 4]].logsumexp(1)
                q = F.softplus(rest - logits[:, 2])  # -log p
                q = q if score == "logprob" else -torch.expm1(-q)
                maps.append((((q[1:] - q[0])[:, None, None]) * acts[0]).sum(0).clamp(min=0))
        total = sum(
            F.interpolate(m[None, None], SIZE, mode="bilinear", align_corners=True) for m in maps
        )
        assert isinstance(total, Tensor)
        assert total.max() > 0 and not found.flat[b].any()
        assert (found.heatmaps[b, 0] - unit(total)[0, 0]).abs().max() < 1e-3
        if gap < 60:  # below 2^-100 the scale counts as that
            torch.testing.assert_close(
                found.ranges[b, 0, 1].double(), total.max(), rtol=1e-3, atol=0
            )


def test_a_gap_beyond_any_probability() -> None:
    model: Any = network()
    model[-1].bias.data[2] += 10_000
    found = Explainer(model, SIZE, LAYERS, "ablationcam")(photos(), targets=2)
    assert found.heatmaps.isfinite().all() and not found.flat.any()
    assert (found.heatmaps.amax((2, 3)) == 1).all()


def test_chunks_targets_and_types() -> None:
    model = network()
    explainer = Explainer(model, SIZE, LAYERS, "ablationcam", targets=2)
    found = explainer(photos())
    for chunk in (1, 40):
        again = Explainer(model, SIZE, LAYERS, "ablationcam", targets=2, chunk=chunk)(photos())
        torch.testing.assert_close(again.heatmaps, found.heatmaps, atol=1e-5, rtol=0)
    alone = explainer(photos()[1:2])
    torch.testing.assert_close(alone.heatmaps[0], found.heatmaps[1], atol=1e-5, rtol=0)
    pair = explainer(photos(), targets=contrast(found.targets[:, 0], found.targets[:, 1]))
    assert (pair.targets == -1).all() and pair.heatmaps.max() == 1
    half = Explainer(model, SIZE, LAYERS, "ablationcam", targets=2, dtype="bfloat16")(photos())
    assert (half.heatmaps - found.heatmaps).abs().mean() < 0.05


def test_layers_of_channels_last_and_tokens() -> None:
    """The channel is that of the layer's grid, whatever the layout."""

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 6, 4, 4)
            self.mix = nn.Linear(6, 6)
            self.head = nn.Linear(6, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.mix(self.conv(x).permute(0, 2, 3, 1))
            logits: Tensor = self.head(F.silu(x).mean((1, 2)))
            return logits

    torch.manual_seed(6)
    model = Last().eval()
    found = Explainer(model, SIZE, ["mix"], "ablationcam", "logit", keep_layers=True)(photos())
    acts = model.mix(model.conv(photos()).permute(0, 2, 3, 1)).detach()
    best = found.targets[:, 0]
    total = torch.zeros(3, *acts.shape[1:3])
    for c in range(6):
        without = acts.clone()
        without[..., c] = 0
        difference = F.silu(acts).mean((1, 2)) - F.silu(without).mean((1, 2))
        drop = (difference @ model.head.weight.T).gather(1, best[:, None])
        total += drop[..., None] * acts[..., c]
    torch.testing.assert_close(found.layer_maps["mix"][:, 0], total.clamp(min=0).detach())


def test_files_are_refused(tmp_path: Path) -> None:
    explainer = Explainer(network(), SIZE, LAYERS, "ablationcam")
    with pytest.raises(TraceError, match="once per channel"):
        export(explainer, tmp_path / "model.onnx")


def test_pytorch_grad_cam(demo_model: LoadedModel, postcards: Any) -> None:
    from pytorch_grad_cam import AblationCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    model = copy.deepcopy(demo_model.module)
    images = demo_model.preprocess.normalize(postcards(2, 200))
    targets = [int(i) for i in model(images).argmax(1)]
    layer = "stage4.1"
    kept = model.get_submodule(layer)
    ours = Explainer.preset(
        "pytorch-grad-cam", model, (160, 160), layers=layer, method="ablationcam"
    )(images, targets=targets)
    assert (ours.logits.gather(1, ours.targets) > 0).all()  # they divide by it
    with AblationCAM(model=model, target_layers=[kept]) as cam:
        theirs = cam(images, [ClassifierOutputTarget(t) for t in targets])
    assert theirs.max() > 0.99
    assert np.abs(ours.heatmaps[:, 0].numpy() - theirs).max() < 2e-3
