"""OpenVINO gives the maps of torch, also where gradients read the weights of the forward."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from combicam import Explainer, export
from combicam.engine.explain import backends
from combicam.errors import ArtifactError
from combicam.export.formats import onnx_file, onnx_weights

pytest.importorskip("openvino")
NAMES = ("0", "2", "4")


def network(normalised: bool) -> nn.Module:
    """Convolutions with strides: their gradients are transposed ones of the same weights."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for ins, outs, groups in ((3, 32, 1), (32, 32, 32), (32, 64, 1)):
        layers.append(nn.Conv2d(ins, outs, 3, 2, 1, groups=groups))
        layers.append(nn.Sequential(nn.BatchNorm2d(outs), nn.ReLU()) if normalised else nn.ReLU())
    tail = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 9)]
    return nn.Sequential(*layers, *tail).eval()


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("writer", ["now", "earlier"])
def test_strides(
    normalised: bool, writer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    explainer = Explainer(network(normalised), (64, 64), layers=NAMES, keep_layers=True)
    if writer == "earlier":
        monkeypatch.setattr(onnx_file, "share_weights", lambda *_, **__: 0)
    path = tmp_path / "model.onnx"
    export(explainer, path, verify=False)
    images = torch.randn(3, 3, 64, 64)
    expected = explainer(images)
    found = Explainer.load(path, backend="openvino", device="cpu")(images, expected.targets)
    for name, maps in expected.layer_maps.items():
        assert (found.layer_maps[name] - maps).abs().max() < 1e-4 * maps.max(), name


def test_large_files_of_earlier_versions_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_file, "share_weights", lambda *_, **__: 0)
    monkeypatch.setattr(onnx_file, "EMBEDDED_BYTES", 1000)
    explainer = Explainer(network(False), (64, 64), layers=NAMES)
    export(explainer, tmp_path / "model.onnx", verify=False)
    with pytest.raises(ArtifactError, match="export it again"):
        Explainer.load(tmp_path / "model.onnx", backend="openvino", device="cpu")


def test_small_weights_are_told_apart_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are not worth sharing, and those in 16 bit."""
    explainer = Explainer(network(False), (64, 64), layers=NAMES)
    images = torch.randn(2, 3, 64, 64)
    expected = explainer(images)
    for least, weights in ((1 << 40, "float32"), (128, "float16")):
        monkeypatch.setattr(onnx_weights, "_LEAST_BYTES", least)
        export(explainer, tmp_path / "model.onnx", weights=weights)
        loaded = Explainer.load(tmp_path / "model.onnx", backend="openvino", device="cpu")
        found = loaded(images, expected.targets)
        limit = 1e-4 if weights == "float32" else 5e-2
        assert (found.heatmaps - expected.heatmaps).abs().max() < limit
    assert backends._for_openvino(tmp_path / "model.onnx") == str(tmp_path / "model.onnx")
