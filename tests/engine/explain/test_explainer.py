"""The Explainer: parity, courtesy towards the caller's model, and errors that help."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cam_oracle import assert_rounding_only, combi_cam
from torch import Tensor, nn

from combicam import (
    ClassTable,
    Explainer,
    Explanation,
    LayerError,
    LoadedModel,
    ModelError,
    Preprocess,
)
from combicam.engine.explain.arguments import best_device, is_fast_last, named_device

Draw = Callable[[int, int], Tensor]


@pytest.fixture(scope="module")
def explainer(demo_model: LoadedModel) -> Explainer:
    return Explainer(demo_model, targets=2, keep_layers=True)


def test_default_is_combi_cam(
    explainer: Explainer, demo_model: LoadedModel, postcards: Draw
) -> None:
    images = postcards(16, 40)
    found = explainer(images)
    inputs = demo_model.preprocess.normalize(images).double()
    model = _double(demo_model.module)
    names = [info.name for info in explainer.layers]
    for k in range(2):
        expected = combi_cam(model, names, inputs, found.targets[:, k])
        assert_rounding_only((found.heatmaps[:, k] - expected).abs().amax((1, 2)))
    probabilities = model(inputs).softmax(1)
    torch.testing.assert_close(
        found.scores.double(), probabilities.topk(2).values, rtol=1e-4, atol=1e-6
    )


def _double(module: nn.Module) -> nn.Module:
    import copy

    return copy.deepcopy(module).double().eval()


def test_shapes_and_dtypes(explainer: Explainer, postcards: Draw) -> None:
    found = explainer(postcards(3, 1))
    assert isinstance(found, Explanation)
    described = {
        name: (tuple(t.shape), t.dtype)
        for name in ("heatmaps", "targets", "scores", "logits", "ranges", "flat")
        if isinstance(t := getattr(found, name), Tensor)
    }
    assert described == {
        "heatmaps": ((3, 2, 160, 160), torch.float32),
        "targets": ((3, 2), torch.int64),
        "scores": ((3, 2), torch.float32),
        "logits": ((3, 36), torch.float32),
        "ranges": ((3, 2, 2), torch.float32),
        "flat": ((3, 2), torch.bool),
    }
    assert list(found.layer_maps) == [info.name for info in explainer.layers]
    assert found.layer_maps["stage4.1"].shape == (3, 2, 10, 10)
    assert not found.flat.any() and found.heatmaps.amin() == 0 and found.heatmaps.amax() == 1


def test_uint8_and_normalised_images_are_one(
    explainer: Explainer, demo_model: LoadedModel, postcards: Draw
) -> None:
    images = postcards(2, 5)
    by_bytes, by_floats = explainer(images), explainer(demo_model.preprocess.normalize(images))
    torch.testing.assert_close(by_bytes.heatmaps, by_floats.heatmaps)
    as_numpy = explainer(images.numpy())
    torch.testing.assert_close(as_numpy.heatmaps, by_bytes.heatmaps)


def test_targets_given_by_the_caller(explainer: Explainer, postcards: Draw) -> None:
    images = postcards(3, 8)
    best = explainer(images)
    second = explainer(images, targets=best.targets[:, 1])
    torch.testing.assert_close(second.heatmaps[:, 0], best.heatmaps[:, 1], atol=1e-5, rtol=0)
    assert second.heatmaps.shape[1] == 1
    assert torch.equal(explainer(images, targets=best.targets.numpy()).targets, best.targets)
    assert torch.equal(explainer(images, targets=[[-1], [-1], [-1]]).targets, best.targets[:, :1])
    region = torch.zeros(3, 1, 36)
    region[..., :18] = 1
    found = explainer(images, targets=region)
    torch.testing.assert_close(found.scores[:, 0], found.logits.softmax(-1)[:, :18].sum(-1))


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("frozen", [True, False])
def test_the_callers_model_is_left_alone(
    context: Any, frozen: bool, demo_model: LoadedModel
) -> None:
    model = _double(demo_model.module).float().train()
    model.requires_grad_(not frozen)
    model.stem.eval()
    first = next(model.parameters())
    first.grad = torch.ones_like(first)
    calls: list[int] = []
    handle = model.stage1.register_forward_hook(lambda *_: calls.append(1))
    before = {n: (m.training, len(m._forward_hooks)) for n, m in model.named_modules()}
    state = {n: t.clone() for n, t in model.state_dict().items()}
    with context():
        explainer = Explainer(model, (160, 160), layers="stages")
        found = explainer(torch.randn(2, 3, 160, 160))
    assert {n: (m.training, len(m._forward_hooks)) for n, m in model.named_modules()} == before
    assert all(p.requires_grad is not frozen for p in model.parameters())
    assert first.grad is not None and (first.grad == 1).all()
    assert all(p.grad is None for p in list(model.parameters())[1:])
    assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())
    assert found.heatmaps.amax() == 1 and not found.heatmaps.requires_grad
    handle.remove()


class Remembers(nn.Module):
    """Keeps a tensor of its first call, as networks with coordinate grids do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 3)
        self.grid: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.grid is None:
            self.grid = torch.linspace(0, 1, x.shape[-1])
        logits: Tensor = self.head((x * self.grid).mean((2, 3)))
        return logits


def test_modules_that_keep_something_of_their_first_call() -> None:
    model = Remembers()
    images = torch.randn(2, 3, 20, 24)
    found = Explainer(model, (20, 24), layers=["conv"])(images)
    assert model.grid is None
    torch.testing.assert_close(found.logits, model(images), atol=1e-5, rtol=1e-4)


@pytest.mark.long
def test_training_autocast_and_hooks_do_not_reach_an_explainer(demo_model: LoadedModel) -> None:
    model = _double(demo_model.module).float()
    seen: list[object] = []
    model.stage1.register_forward_hook(lambda _m, _a, output: seen.append(output))
    images = torch.randn(2, 3, 160, 160)
    with torch.autocast("cpu", torch.bfloat16):
        explainer = Explainer(model, (160, 160), layers="stages")
        inside = explainer(images)
    before = explainer(images)
    assert not seen
    torch.testing.assert_close(inside.heatmaps, before.heatmaps)
    for p in model.parameters():
        p.data += 0.1
    torch.testing.assert_close(explainer(images).heatmaps, before.heatmaps)
    both = explainer(images, targets=[[0, 1], [0, 1]])
    torch.testing.assert_close(both.logits, before.logits, atol=1e-5, rtol=1e-4)
    with torch.inference_mode():
        half = Explainer(model, (160, 160), layers="last", dtype="bfloat16")
    assert half.description.signature.dtype == "bfloat16"


def test_flat_maps_are_zeros_and_say_so(postcards: Draw) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )
    nn.init.zeros_(model[4].weight)  # type: ignore[arg-type]
    found = Explainer(model, (32, 40))(torch.randn(2, 3, 32, 40))
    assert found.flat.all() and (found.heatmaps == 0).all()


def test_nan_images_do_not_reach_their_neighbours(explainer: Explainer) -> None:
    images = torch.randn(3, 3, 160, 160)
    clean = explainer(images)
    images[1, 0, 0, 0] = torch.nan
    found = explainer(images)
    assert found.heatmaps.isfinite().all() and found.ranges[1].isnan().any()
    torch.testing.assert_close(found.heatmaps[[0, 2]], clean.heatmaps[[0, 2]], atol=1e-5, rtol=0)


def test_threads_share_one_explainer(explainer: Explainer, postcards: Draw) -> None:
    batches = [postcards(2, 100 + 2 * i) for i in range(4)]
    expected = [explainer(b).heatmaps for b in batches]
    found: dict[int, Tensor] = {}
    threads = [
        threading.Thread(target=lambda i=i: found.update({i: explainer(batches[i]).heatmaps}))
        for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(4):
        torch.testing.assert_close(found[i], expected[i])


@pytest.mark.long
@pytest.mark.parametrize(
    "backend",
    [
        "torchscript",
        "onnxruntime",
        "openvino",
        pytest.param("compile", marks=pytest.mark.slow),
        pytest.param("aoti", marks=pytest.mark.slow),
    ],
)
def test_backends_agree(
    backend: str, explainer: Explainer, demo_model: LoadedModel, postcards: Draw
) -> None:
    other = Explainer(demo_model, targets=2, backend=backend, device="cpu")
    for count in (3, 1):
        images = postcards(count, 60)
        ours, theirs = other(images), explainer(images)
        assert torch.equal(ours.targets, theirs.targets)
        assert (ours.heatmaps - theirs.heatmaps).abs().max() < 1e-4
        torch.testing.assert_close(ours.scores, theirs.scores, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("images", "targets", "words"),
    [
        (
            torch.zeros(2, 3, 160, 100),
            None,
            r"float \[B,3,160,160\].* got torch.float32 \(2, 3, 160, 100\)",
        ),
        (torch.zeros(2, 160, 160, 3), None, "got torch.float32"),
        (torch.zeros(2, 4, 160, 160, dtype=torch.uint8), None, r"uint8 \[B,160,160,3\]"),
        (torch.zeros(2, 3, 160, 160, dtype=torch.int32), None, "got torch.int32"),
        (torch.zeros(0, 3, 160, 160), None, r"got torch.float32 \(0, 3"),
        (torch.zeros(2, 3, 160, 160), [1], "B=2 images"),
        (torch.zeros(2, 3, 160, 160), [[1], [36]], r">= -36 and < 36 .* got 36"),
        (torch.zeros(2, 3, 160, 160), torch.zeros(2, 1, 35), "n=36"),
        (torch.zeros(2, 3, 160, 160), torch.zeros(2, 1, 36), "at least one that is not 0"),
    ],
)
def test_wrong_inputs(explainer: Explainer, images: Tensor, targets: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        explainer(images, targets=targets)


@pytest.mark.long
def test_wrong_arguments(demo_model: LoadedModel) -> None:
    model = demo_model.module
    with pytest.raises(TypeError, match=r"Explainer\.load"):
        Explainer("model.onnx", (160, 160))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="input_size"):
        Explainer(model)
    with pytest.raises(ValueError, match="backend"):
        Explainer(model, (160, 160), backend="tensorrt")
    with pytest.raises(ValueError, match="dtype"):
        Explainer(model, (160, 160), dtype="int8")
    with pytest.raises(LayerError, match="near misses"):
        Explainer(model, (160, 160), layers="stage9")
    with pytest.raises(TypeError, match="bool"):
        Explainer(demo_model)(torch.zeros(1, 3, 160, 160), targets=np.array([True]))
    with pytest.raises(ValueError, match="36 classes"):
        Explainer(model, (160, 160), classes=ClassTable(names=("a", "b")))
    broken = _double(model).float()
    broken.head.weight.data[0, 0] = torch.inf
    with pytest.raises(ModelError, match=r"head\.weight"):
        Explainer(broken, (160, 160))
    with pytest.raises(ValueError, match="preset"):
        Explainer.preset("captum", model, (160, 160))


def test_input_size_changes_the_preprocessing_of_a_loaded_model(demo_model: LoadedModel) -> None:
    explainer = Explainer(demo_model, (96, 128), layers="last")
    assert explainer.preprocess == Preprocess(
        (96, 128), demo_model.preprocess.mean, demo_model.preprocess.std, resize="squash"
    )
    assert explainer(torch.zeros(1, 96, 128, 3, dtype=torch.uint8)).heatmaps.shape[2:] == (96, 128)


@pytest.mark.long
def test_fingerprint_tells_weights_and_spec_apart(demo_model: LoadedModel) -> None:
    first = Explainer(demo_model, layers="last").fingerprint()
    assert first == Explainer(demo_model, layers="last").fingerprint()
    other = Explainer(demo_model, layers="last", method="hirescam").fingerprint()
    assert {k for k in first if first[k] != other[k]} == {"spec"}
    changed = _double(demo_model.module).float()
    changed.head.bias.data += 1
    third = Explainer(changed, (160, 160), layers="last").fingerprint()
    assert third["weights"] != first["weights"]


@pytest.mark.parametrize(
    ("dtype", "precision", "last"),
    [
        (torch.float32, None, False),
        (torch.float32, "float32", False),
        (torch.float32, "tf32", True),
        (torch.bfloat16, None, True),
        (torch.float16, "float16", True),
    ],
)
def test_gpus_get_the_layout_that_their_convolutions_have(
    dtype: torch.dtype, precision: str | None, last: bool
) -> None:
    assert is_fast_last(nn.Conv2d(3, 4, 3).to(dtype), precision) is last


def test_a_gpu_without_a_number_is_the_current_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zeros = torch.zeros
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch, "zeros", lambda *size, device: zeros(*size))
    assert named_device("cuda") == named_device("cuda:1") == torch.device("cuda:1")
    assert named_device("cuda:0") == torch.device("cuda:0")
    assert best_device(tmp_path / "model.ts") == torch.device("cuda:1")
    assert named_device("cpu") == torch.device("cpu")


def test_tf32_is_torchs() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ValueError, match="with dtype 'tf32', got 'onnxruntime'"):
        Explainer(model, (16, 16), dtype="tf32", backend="onnxruntime")
    explainer = Explainer(model, (16, 16), dtype="tf32")
    assert explainer.precision == explainer.fingerprint()["dtype"] == "tf32"
    with pytest.raises(ValueError, match="got 'aoti'"):
        explainer.with_backend("aoti")
