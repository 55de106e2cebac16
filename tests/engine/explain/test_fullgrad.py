"""FullGrad: input and bias gradients of every layer, against float64 and pytorch-grad-cam."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cam_oracle
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from combicam import CamSpec, Explainer, LayerError, LoadedModel, export

SIZE = (20, 24)
BIASED = ["0", "2", "5"]


def network() -> nn.Sequential:
    """A bias, an implicit one, none, and one on a grid of a single pixel."""
    torch.manual_seed(1)
    features = [nn.Conv2d(3, 6, 3), nn.ReLU(), nn.BatchNorm2d(6), nn.ReLU()]
    features += [nn.Conv2d(6, 8, 3, 2, bias=False), nn.BatchNorm2d(8, affine=False), nn.ReLU()]
    tail = [nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 9, 1), nn.ReLU(), nn.Flatten(), nn.Linear(9, 5)]
    model = cam_oracle.calibrated(nn.Sequential(*features, *tail), SIZE)
    norm: Any = model[2]  # type: ignore[index]
    nn.init.normal_(norm.bias)
    assert isinstance(model, nn.Sequential)
    return model


def photos() -> Tensor:
    return torch.randn(3, 3, *SIZE, generator=torch.Generator().manual_seed(2))


def products(classes: Tensor, score: str = "logit") -> tuple[list[Tensor], Tensor]:
    """x dy/dx, and b dy/db at every pixel of every layer, [B,C,h,w]; and y."""
    model: Any = copy.deepcopy(network()).double()
    x = photos().double().requires_grad_()
    outputs, value = [x], x
    for module in model:
        value = module(value)
        outputs.append(value)
    s = value if score == "logit" else value.log_softmax(-1)
    y = s.gather(1, classes[:, None])
    grads = torch.autograd.grad(y.sum(), outputs)
    found = [x.detach() * grads[0]]
    for name in BIASED:
        module = model[int(name)]
        bias = module.bias
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            zero = torch.zeros(1, module.num_features, 1, 1, dtype=torch.float64)
            bias = module(zero).flatten()  # what it adds, whatever comes in
        found.append((bias[:, None, None] * grads[int(name) + 1]).detach())
    last = [model[8].bias[:, None, None] * grads[9], model[11].bias * grads[12]]
    total = sum(p.flatten(1).sum(1) for p in [*found, *last])
    assert isinstance(total, Tensor)
    if score == "logit":  # the products add up to the score: nothing is left out
        torch.testing.assert_close(total, y[:, 0])
    return found, y


def expected_map(classes: Tensor, score: str) -> Tensor:
    maps = [
        torch.stack([sum(cam_oracle.unit(c) for c in image) for image in product.abs()])  # type: ignore[misc]
        for product in products(classes, score)[0]
    ]
    up = [F.interpolate(m[:, None], SIZE, mode="bilinear", align_corners=True) for m in maps]
    return cam_oracle.unit(torch.stack(up).sum(0)[:, 0])


@pytest.mark.parametrize("score", ["logit", "logprob"])
def test_equals_autograd(score: str) -> None:
    explainer = Explainer(
        network(), SIZE, method="fullgrad", score=score, targets=2, keep_layers=True
    )
    assert [info.name for info in explainer.layers] == ["input", *BIASED]
    found = explainer(photos())
    assert list(found.layer_maps) == ["input", *BIASED]
    assert found.layer_maps["input"].shape == (3, 2, *SIZE)
    for k in range(2):
        expected = expected_map(found.targets[:, k], score)
        assert (found.heatmaps[:, k] - expected).abs().max() < 1e-4


@pytest.mark.long
def test_in_files_and_bfloat16(tmp_path: Path) -> None:
    explainer = Explainer(network(), SIZE, method="fullgrad", targets=2)
    found = explainer(photos())
    for suffix in (".onnx", ".ts"):
        export(explainer, tmp_path / f"model{suffix}")
        loaded = Explainer.load(tmp_path / f"model{suffix}")(photos())
        torch.testing.assert_close(loaded.heatmaps, found.heatmaps, atol=1e-3, rtol=0)
    half = Explainer(network(), SIZE, method="fullgrad", targets=2, dtype="bfloat16")(photos())
    assert (half.heatmaps - found.heatmaps).abs().mean() < 0.05


@pytest.mark.long
@pytest.mark.parametrize("gap", [100, 10_000])
@pytest.mark.parametrize("eps", [0.0, 1e-7])
def test_a_certain_network(gap: int, eps: float) -> None:
    """Every channel is normalised, so that the size of gradients does not show, but beside eps."""
    model = network()
    model[-1].bias.data[3] += gap
    found = Explainer(model, SIZE, method="fullgrad", eps=eps)(photos())
    exact = Explainer(copy.deepcopy(model).double(), SIZE, method="fullgrad", eps=eps)(photos())
    assert not found.flat.any() and found.heatmaps.isfinite().all()
    torch.testing.assert_close(found.heatmaps, exact.heatmaps, atol=1e-2, rtol=0)
    if eps == 0:
        near = copy.deepcopy(network()).double()
        near[-1].bias.data[3] += 25
        finite = Explainer(near, SIZE, method="fullgrad")(photos())
        torch.testing.assert_close(found.heatmaps, finite.heatmaps, atol=1e-2, rtol=0)


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="leave layers at its default"):
        CamSpec(layers="last", method="fullgrad")

    class Fused(nn.BatchNorm2d):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input).relu()

    model = network()
    model[5] = Fused(8)
    with pytest.raises(LayerError, match=r"only normalise, got '5' \(Fused\)"):
        Explainer(model.eval(), SIZE, method="fullgrad")


def test_pytorch_grad_cam(demo_model: LoadedModel, postcards: Callable[[int, int], Tensor]) -> None:
    from pytorch_grad_cam import FullGrad
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    model = copy.deepcopy(demo_model.module)
    images = demo_model.preprocess.normalize(postcards(3, 200))
    targets = [int(i) for i in model(images).argmax(1)]
    ours = Explainer.preset("pytorch-grad-cam", model, (160, 160), method="fullgrad")(
        images, targets=targets
    )
    with FullGrad(model, []) as cam:
        theirs = cam(images, [ClassifierOutputTarget(t) for t in targets])
    assert theirs.max() > 0.99
    assert np.abs(ours.heatmaps[:, 0].numpy() - theirs).max() < 5e-3
