"""The joint graph beside the forward alone and beside other libraries, on the same layers."""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor, nn

from benchmarks.harness import Contender
from benchmarks.ladder import Setting, ladder, under_autocast
from combicam import Explainer, export
from combicam.engine.exporting import natural_noise


@dataclass(frozen=True)
class Case:
    """One network at one size.

    Attributes:
        name: of the case.
        model: in ``torchvision.models``.
        size: (H, W), pixels.
        layers: as in ``CamSpec``.
    """

    name: str
    model: str
    size: tuple[int, int]
    layers: str


CASES = {
    "resnet50": Case("resnet50", "resnet50", (224, 224), "stages"),
    "efficientnet_b4": Case("efficientnet_b4", "efficientnet_b4", (300, 300), "blocks"),
    "resnet18-tiny": Case("resnet18-tiny", "resnet18", (64, 64), "stages"),
}


def network(case: Case) -> nn.Module:
    """Random weights whose normalisations fit their activations (no denormal numbers)."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(case.model, weights=None)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
    model.train()
    with torch.no_grad():
        model(natural_noise(8, case.size, seed=1))
    return model.eval()


def layer_names(explainer: Explainer) -> list[str]:
    """The target layers, so that others take the same."""
    return [info.name for info in explainer.layers]


def gpu_contenders(
    case: Case, batch: int, authors: bool, device: torch.device, dtype: torch.dtype
) -> Iterator[Contender]:
    """The ladder on one device, and the others there, in float32 and in 16 bit."""
    model = network(case).to(device)
    images = natural_noise(batch, case.size, seed=2).to(device)
    setting = Setting(model, images, case.size, case.layers, dtype)
    yield from ladder(setting)
    names = layer_names(setting.explainer(torch.float32))
    yield from others(model, case, names, images)
    yield from under_autocast(others(model, case, names, images), dtype)
    if authors:
        yield Contender(
            "one pass per layer (1 image)", lambda: _one_pass_per_layer(model, names, images[:1]), 1
        )


def contenders(case: Case, batch: int, authors: bool) -> Iterator[Contender]:
    """Forward alone, our graph in every runtime, and the others."""
    model = network(case)
    images = natural_noise(batch, case.size, seed=2)
    explainer = Explainer(model, case.size, layers=case.layers)
    expected = explainer(images)
    names = layer_names(explainer)

    def heatmap_error(found: Any) -> float:
        return float((found.heatmaps - expected.heatmaps).abs().max())

    def logit_error(found: Tensor) -> float:
        return float((found - expected.logits).abs().max())

    yield Contender(
        "forward, ONNX Runtime", lambda: _ort_forward(model, images), batch, logit_error
    )
    yield Contender(
        "forward, torch eager", lambda: _torch_forward(model, images), batch, logit_error
    )
    yield Contender("combicam, eager", lambda: lambda: explainer(images), batch, heatmap_error)
    for suffix in (".onnx", ".ts"):
        prepare = _artifact(explainer, images, suffix)
        # A ReLU at zero to rounding may differ between runtimes.
        yield Contender(f"combicam, {suffix}", prepare, batch, heatmap_error, tolerance=2e-2)
    yield from others(model, case, names, images)
    if authors:
        yield Contender(
            "one pass per layer (1 image)", lambda: _one_pass_per_layer(model, names, images[:1]), 1
        )


def _ort_forward(model: nn.Module, images: Tensor) -> Callable[[], Tensor]:
    import onnxruntime as ort

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = f"{folder}/forward.onnx"
        torch.onnx.export(
            model,
            (images[:2],),
            path,
            dynamo=True,
            verbose=False,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            external_data=False,
        )
        session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda: torch.from_numpy(session.run(None, {name: images.numpy()})[0])


def _torch_forward(model: nn.Module, images: Tensor) -> Callable[[], Tensor]:
    def forward() -> Tensor:
        with torch.no_grad():
            logits: Tensor = model(images)
        return logits

    return forward


def _artifact(explainer: Explainer, images: Tensor, suffix: str) -> Callable[[], Callable[[], Any]]:
    def prepare() -> Callable[[], Any]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"joint{suffix}"
            export(explainer, path, verify=False)
            loaded = Explainer.load(path, device="cpu")
        for _ in range(2):  # TorchScript specialises in its first calls
            loaded(images)
        return lambda: loaded(images)

    return prepare


def others(model: nn.Module, case: Case, names: list[str], images: Tensor) -> Iterator[Contender]:
    def against(preset: str) -> Callable[[Any], float]:
        ours = Explainer.preset(preset, model, case.size, layers=names)(images).heatmaps[:, 0]

        def error(found: Any) -> float:
            maps = [
                torch.as_tensor(np.asarray(f)) if isinstance(f, np.ndarray) else f for f in found
            ]
            return float((ours.cpu() - torch.stack([m.float().cpu() for m in maps])).abs().max())

        return error

    def grad_cam() -> Callable[[], Any]:
        from pytorch_grad_cam import GradCAM

        own = copy.deepcopy(model)
        cam = GradCAM(model=own, target_layers=[own.get_submodule(n) for n in names])
        return lambda: cam(input_tensor=images, targets=None)

    def torchcam() -> Callable[[], Any]:
        from torchcam.methods import GradCAM

        own = copy.deepcopy(model)
        extractor = GradCAM(own, target_layer=names)

        def explain() -> Any:
            scores = own(images.clone().requires_grad_())
            classes = scores.argmax(1).tolist()
            return extractor.fuse_cams(extractor(classes, scores), target_shape=case.size)

        return explain

    # Their interpolation (cv2) and our float32 differ by less than this, see the tests.
    yield Contender(
        "pytorch-grad-cam", grad_cam, len(images), against("pytorch-grad-cam"), tolerance=5e-2
    )
    yield Contender("torchcam", torchcam, len(images), against("torchcam"), tolerance=5e-2)


def _one_pass_per_layer(model: nn.Module, names: list[str], images: Tensor) -> Callable[[], Tensor]:
    """A forward and a full backward per layer: what explaining all blocks costs without a graph."""
    own = copy.deepcopy(model)

    def explain() -> Tensor:
        total: Any = 0
        for name in names:
            kept: list[Tensor] = []
            handle = own.get_submodule(name).register_forward_hook(
                lambda _m, _a, output, kept=kept: kept.append(output)
            )
            probabilities = own(images).softmax(1)
            handle.remove()
            kept[0].retain_grad()
            own.zero_grad()
            probabilities.amax(1).sum().backward()
            grad = kept[0].grad
            assert grad is not None
            cam = (grad.mean((2, 3), keepdim=True) * kept[0].detach()).sum(1, keepdim=True).relu()
            total = total + nn.functional.interpolate(
                cam, images.shape[2:], mode="bilinear", align_corners=True
            )
        return (total - total.min()) / (total.max() - total.min())

    return explain
