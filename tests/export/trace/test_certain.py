"""Networks that are certain: their maps are those of float64, whatever 1 - p rounds to."""

from __future__ import annotations

from pathlib import Path

import cam_oracle
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from combicam import Explainer, contrast, export
from combicam.kernels.cam_head import LEAST_SCALE

SIZE = (32, 40)
LAYERS = ["0", "2", "4"]
SLOW_GAPS = [pytest.param(gap, marks=pytest.mark.slow) for gap in (10, 30, 1000)]
# Of the typical image: the median over images of the largest, and of the mean difference.
BOUNDS = {"float32": (1e-5, 1e-6), "bfloat16": (3e-2, 4e-3), "float16": (5e-3, 1e-3)}
# Its divisor, the sum of a channel, may nearly cancel.
ROOM = {"xgradcam": 2.0}


def network(gap: float) -> nn.Module:
    """Float64, with the median image's logit this far above the log-sum-exp of the others."""
    torch.manual_seed(3)
    features: list[nn.Module] = [nn.Conv2d(3, 12, 3), nn.SiLU()]
    features += [nn.Conv2d(12, 16, 3, 2), nn.SiLU(), nn.Conv2d(16, 24, 3, 2), nn.SiLU()]
    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 7)]
    model = nn.Sequential(*features, *pool).double()
    logits = model(photos().double()).detach()
    low, high = 1e-3, 1e8
    for _ in range(100):
        factor = (low * high) ** 0.5
        too_small = odds(factor * logits, logits.argmax(1)).median() < gap
        low, high = (factor, high) if too_small else (low, factor)
    head = model[-1]
    head.weight.data *= low
    head.bias.data *= low
    return model.requires_grad_(False)


def photos() -> Tensor:
    return 2 * torch.randn(16, 3, *SIZE, generator=torch.Generator().manual_seed(5))


def odds(logits: Tensor, classes: Tensor) -> Tensor:
    """z_c - log sum of exp of the others."""
    hit = F.one_hot(classes, logits.shape[1]).bool()
    return logits[hit] - logits.masked_fill(hit, -torch.inf).logsumexp(1)


def truth(model: nn.Module, classes: Tensor, method: str) -> tuple[Tensor, Tensor, Tensor]:
    """By autograd in float64: the fused maps' unit range, their ranges, and 1 - p."""
    acts: list[Tensor] = []
    x = photos().double().requires_grad_()
    for name, module in model.named_children():
        x = module(x)
        if name in LAYERS:
            acts.append(x)
    y = odds(x, classes)
    grads = torch.autograd.grad(y.sum(), acts)
    rest = torch.sigmoid(-y.detach())
    total = torch.zeros(())
    for act, grad in zip(acts, grads, strict=True):
        # Only gradcam++ depends on how large the gradients are.
        grad = rest[:, None, None, None] * grad if method == "gradcam++" else grad
        cam = cam_oracle.METHODS[method](act.detach(), grad)[:, None]
        total = total + F.interpolate(cam, size=SIZE, mode="bilinear", align_corners=True)[:, 0]
    ranges = torch.stack([total.amin((1, 2)), total.amax((1, 2))], -1)
    if method not in ("gradcam++", "eigencam"):  # the one has it already, the other no gradients
        ranges = rest[:, None] * ranges
    return cam_oracle.unit(total), ranges, rest


def check(explainer: Explainer, model: nn.Module, method: str, dtype: str) -> None:
    classes = model(photos().double()).argmax(1)
    expected, ranges, rest = truth(model, classes, method)
    found = explainer(photos(), targets=classes)
    varied = expected.amax((1, 2)) > 0  # float64 itself underflows in gradcam++
    assert not (found.flat[:, 0] & varied).any() and found.heatmaps.isfinite().all()
    if varied.any():
        errors = (found.heatmaps[:, 0].double() - expected).abs()[varied]
        most, mean = (bound * ROOM.get(method, 1.0) for bound in BOUNDS[dtype])
        assert errors.amax((1, 2)).median() < most and errors.mean((1, 2)).median() < mean
    if dtype == "float32" and method != "gradcam++":
        shown = rest > 2 * LEAST_SCALE
        torch.testing.assert_close(
            found.ranges[shown, 0].double(), ranges[shown], rtol=3e-3, atol=0
        )
        assert (found.ranges[~shown, 0, 1] > 0).all()


@pytest.mark.parametrize("method", list(cam_oracle.METHODS))
@pytest.mark.parametrize("gap", [1, 100, 10_000, *SLOW_GAPS])
def test_in_float32(gap: float, method: str) -> None:
    model = network(gap)
    explainer = Explainer(network(gap).float(), SIZE, layers=LAYERS, method=method)
    check(explainer, model, method, "float32")


@pytest.mark.parametrize("method", list(cam_oracle.METHODS))
@pytest.mark.parametrize("gap", [100, *SLOW_GAPS])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_in_sixteen_bits(gap: float, method: str, dtype: str) -> None:
    explainer = Explainer(network(gap).float(), SIZE, layers=LAYERS, method=method, dtype=dtype)
    check(explainer, network(gap), method, dtype)


def faint(dtype: torch.dtype) -> nn.Module:
    """Whose gradients of single pixels are some 1e-8."""
    model = network(1)
    for parameter in model[-1].parameters():  # type: ignore[operator, union-attr]
        parameter.data *= 1e-4
    return model.to(dtype)


def test_small_gradients_in_float16() -> None:
    """They are enlarged before they are rounded: 5e-2 off otherwise."""
    options = {"layers": LAYERS, "method": "layercam", "dtype": "float16"}
    explainer = Explainer(faint(torch.float32), SIZE, device="cpu", **options)
    check(explainer, faint(torch.float64), "layercam", "float16")


@pytest.mark.slow
@pytest.mark.parametrize("method", list(cam_oracle.METHODS))
@pytest.mark.parametrize("gap", [1, 30, 1000])
@pytest.mark.parametrize(
    ("suffix", "dtype"),
    [
        (".ts", "float32"),
        (".ts", "bfloat16"),
        (".ts", "float16"),
        (".onnx", "float32"),
        (".onnx", "float16"),
    ],
)
def test_in_files(gap: float, method: str, suffix: str, dtype: str, tmp_path: Path) -> None:
    explainer = Explainer(network(gap).float(), SIZE, layers=LAYERS, method=method, dtype=dtype)
    export(explainer, tmp_path / f"model{suffix}")
    check(Explainer.load(tmp_path / f"model{suffix}"), network(gap), method, dtype)


@pytest.mark.parametrize("score", ["prob", "logprob"])
def test_regions_and_contrasts(score: str) -> None:
    """A region of the best class alone is that class; a contrast of the best two."""
    model = network(300).float()
    explainer = Explainer(model, SIZE, layers=LAYERS, score=score)
    best = model(photos()).topk(2, 1).indices
    of_class = explainer(photos(), targets=best[:, :1])
    region = explainer(photos(), targets=3.0 * F.one_hot(best[:, :1], 7).float())
    torch.testing.assert_close(region.heatmaps, of_class.heatmaps, atol=1e-4, rtol=0)
    assert not region.flat.any()
    both = explainer(photos(), targets=contrast(best[:, 0], best[:, 1]))
    logit = Explainer(model, SIZE, layers=LAYERS, score="logit")
    wanted = logit(photos(), targets=contrast(best[:, 0], best[:, 1]))
    if score == "logprob":
        torch.testing.assert_close(both.heatmaps, wanted.heatmaps, atol=1e-4, rtol=0)
    assert not both.flat.any() and both.heatmaps.amax((2, 3)).min() == 1


@pytest.mark.parametrize(
    ("fuse", "normalize"),
    [("product", "map"), ("gated", "map"), ("none", "none"), ("mean", "grid+map"), ("max", "none")],
)
def test_however_maps_are_fused(fuse: str, normalize: str) -> None:
    """The sum of a certain network's maps is what float64 gives, times 1 - p where it shows."""
    values = {"layers": LAYERS, "fuse": fuse, "normalize": normalize, "keep_layers": True}
    found = Explainer(network(30).float(), SIZE, **values)(photos())  # type: ignore[arg-type]
    exact = Explainer(network(30), SIZE, **values)(photos())  # type: ignore[arg-type]
    assert not found.flat.all()
    scale = exact.heatmaps.amax((-2, -1), keepdim=True).clamp_min(1e-37)
    torch.testing.assert_close(found.heatmaps / scale, exact.heatmaps / scale, atol=1e-2, rtol=0)
    for name, m in found.layer_maps.items():
        top = exact.layer_maps[name].amax((-2, -1), keepdim=True)
        torch.testing.assert_close(m / top, exact.layer_maps[name] / top, atol=1e-2, rtol=0)
