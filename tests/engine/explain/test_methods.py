"""Methods in the joint graph and in files: K targets, other batches, several layers, float64."""

from __future__ import annotations

import copy
from pathlib import Path

import cam_oracle
import pytest
import torch
from torch import Tensor, nn

from combicam import Explainer, export

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


@pytest.mark.parametrize("method", ["eigencam", "eigengradcam"])
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


@pytest.mark.parametrize("method", ["eigengradcam"])
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
