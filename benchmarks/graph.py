"""The joint graph beside the forward alone and beside other libraries, on the same layers."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.harness import Contender
from benchmarks.ladder import Setting, ladder, under_autocast
from benchmarks.libraries import AUTHORS, TOLERANCE, counterpart, library, typical_error
from benchmarks.networks import Case, network
from combicam import Explainer, export
from combicam.engine.exporting import natural_noise


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
        yield _authors(model, case, names, images)


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
        yield _authors(model, case, names, images)


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


def others(
    model: nn.Module,
    case: Case,
    layers: list[str],
    images: Tensor,
    names: tuple[str, ...] = ("pytorch-grad-cam", "torchcam"),
) -> Iterator[Contender]:
    """Other libraries, each checked against ours with its semantics."""
    for name in names:
        expected = counterpart(name, model, layers, case.size)(images)
        yield Contender(
            name,
            partial(_library, name, model, layers, images),
            len(images),
            partial(typical_error, expected=expected),
            TOLERANCE,
        )


def _library(name: str, model: nn.Module, layers: list[str], images: Tensor) -> Callable[[], Any]:
    return partial(library(name, model, layers, _size(images)), images)


def _authors(model: nn.Module, case: Case, layers: list[str], images: Tensor) -> Contender:
    """One photo at a time, as their code works."""
    (contender,) = others(model, case, layers, images[:1], (AUTHORS,))
    return replace(contender, name=f"{AUTHORS} (1 image)")


def _size(images: Tensor) -> tuple[int, int]:
    height, width = images.shape[2:]
    return height, width
