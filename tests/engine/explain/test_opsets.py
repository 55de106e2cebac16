"""ONNX files of every opset: they load, agree with autograd, or name what the opset lacks."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from cam_oracle import calibrated, combi_cam
from torch import Tensor, nn

from combicam import Explainer, TraceError, export
from combicam.cli import main
from combicam.export.formats.onnx_opset import newest_opset

SIZE = (32, 40)


class Block(nn.Module):
    """A residual of another module."""

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*modules)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return x + y


class Last(nn.Module):
    """A module on channels that are last."""

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*modules)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return y


class Excited(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze, self.excite = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.excite(nn.functional.silu(self.squeeze(x.mean((2, 3), keepdim=True))))
        return x * gate.sigmoid()


class Shuffled(nn.Module):
    """Two branches of split channels."""

    def __init__(self) -> None:
        super().__init__()
        self.right = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, 1)
        return torch.cat([left, self.right(right)], 1)


def network() -> nn.Sequential:
    """Blocks as of ResNet, EfficientNet, ConvNeXt, ShuffleNet, and of group norm."""
    wide = [nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)]
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU()),
        nn.MaxPool2d(3, 2, 1),
        Block(nn.Conv2d(16, 16, 3, 1, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 1)),
        Block(nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.SiLU(), Excited(16)),
        Block(nn.Conv2d(16, 16, 7, padding=3, groups=16), Last(nn.LayerNorm(16), *wide)),
        Block(Shuffled(), nn.GroupNorm(4, 16), nn.Hardswish()),
        nn.Upsample(scale_factor=2, mode="bilinear"),
        Block(nn.Conv2d(16, 16, 1), nn.InstanceNorm2d(16, affine=True), nn.Mish(), nn.PReLU()),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 7),
    )


@pytest.fixture(scope="module")
def explainer() -> Explainer:
    layers = [str(i) for i in (2, 3, 4, 5, 7)]
    return Explainer(calibrated(network(), SIZE), SIZE, layers=layers, targets=2)


@pytest.mark.long
@pytest.mark.parametrize(
    "opset",
    [13, *(pytest.param(n, marks=pytest.mark.slow) for n in (14, 15, 16, 17)), newest_opset()],
)
def test_files_of_every_opset_agree_with_autograd(
    opset: int, explainer: Explainer, tmp_path: Path
) -> None:
    path = tmp_path / "graph.onnx"
    found = export(explainer, path, opset=opset)
    assert found is not None and found.max_heatmap_error < 1e-4
    model = onnx.load(str(path))
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", opset)]
    if opset < 18:  # what a runtime of that age reads
        assert model.ir_version == onnx.helper.find_min_ir_version_for(model.opset_import)
    loaded = Explainer.load(path)
    assert loaded.description.opset == opset
    exact = copy.deepcopy(explainer.session.module).double()  # type: ignore[union-attr]
    names = [info.name for info in explainer.layers]
    for batch in (1, 3):
        images = torch.randn(batch, 3, *SIZE, generator=torch.Generator().manual_seed(batch))
        outputs = loaded(images)
        for k in range(2):
            expected = combi_cam(exact, names, images.double(), outputs.targets[:, k])
            assert (outputs.heatmaps[:, k] - expected).abs().max() < 1e-4


@pytest.mark.long
def test_the_default_opset_is_recorded(explainer: Explainer, tmp_path: Path) -> None:
    export(explainer, tmp_path / "graph.onnx", verify=0)
    assert Explainer.load(tmp_path / "graph.onnx").description.opset == 18
    export(explainer, tmp_path / "graph.ts", verify=0)
    assert Explainer.load(tmp_path / "graph.ts").description.opset is None


@pytest.mark.long
def test_what_an_opset_lacks_is_refused_by_name(tmp_path: Path) -> None:
    """The backward of overlapping windows is a scattered sum, which is of opset 16."""
    explainer = Explainer(network().eval(), (128, 128), layers=["0"])
    words = r"opset 15 has no ScatterElements .*backward of .*max_pool2d in module '1' \(MaxPool2d"
    with pytest.raises(TraceError, match=words):
        export(explainer, tmp_path / "graph.onnx", opset=15)
    assert not list(tmp_path.iterdir())
    small = Explainer(network().eval(), (16, 16), layers=["0"])
    found = export(small, tmp_path / "graph.onnx", opset=15)  # one-hot, if it is small
    assert found is not None and found.max_heatmap_error < 1e-4


@pytest.mark.parametrize("opset", [12, newest_opset() + 1, 0, True, 17.0, "17"])
def test_opsets_that_there_are_not(opset: object, explainer: Explainer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected opset .*got"):
        export(explainer, tmp_path / "graph.onnx", opset=opset)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"expected no opset for \.ts"):
        export(explainer, tmp_path / "graph.ts", opset=17)
    assert not list(tmp_path.iterdir())


def test_the_command_takes_an_opset(tmp_path: Path) -> None:
    path = tmp_path / "demo.onnx"
    arguments = ["-m", "demo", "--layers", "last", "--verify", "2"]
    main(["export", *arguments, "--opset", "17", "-o", str(path)])
    assert onnx.load(str(path)).opset_import[0].version == 17
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    inputs = {
        "images": np.zeros((1, 3, 160, 160), np.float32),
        "targets": np.full((1, 1), -1, np.int64),
    }
    assert session.run(["heatmaps"], inputs)[0].shape == (1, 1, 160, 160)
