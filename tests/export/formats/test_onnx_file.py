"""Written files: ONNX Runtime computes what the graph computes, from as few weights as can be."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import torchvision
from cam_oracle import acts_and_grads, calibrated
from torch import Tensor, nn

from combicam import CamSpec
from combicam.export.formats import onnx_file, onnx_weights
from combicam.export.formats.onnx_file import write_onnx
from combicam.export.trace.snapshot import snapshot
from combicam.export.trace.trace import trace

SIZE = (64, 96)


class Gated(nn.Module):
    """SiLU, squeeze-and-excitation, residuals, strides and pools, of 16, 24 and 32 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.pool = nn.MaxPool2d(2)
        self.narrow = nn.Conv2d(16, 24, 1)
        self.expand = nn.Sequential(nn.Conv2d(24, 48, 1), nn.BatchNorm2d(48), nn.SiLU())
        self.depthwise = nn.Sequential(nn.Conv2d(48, 48, 3, 1, 1, groups=48), nn.SiLU())
        self.squeeze = nn.Sequential(nn.Conv2d(48, 20, 1), nn.SiLU(), nn.Conv2d(20, 48, 1))
        self.project = nn.Conv2d(48, 24, 1)
        self.strided = nn.Sequential(nn.Conv2d(24, 32, 3, 2, 1), nn.ReLU())
        self.residual = nn.Sequential(nn.Conv2d(32, 32, 3, 1, 1), nn.ReLU(), nn.Conv2d(32, 32, 1))
        self.head = nn.Linear(32, 9)

    def forward(self, x: Tensor) -> Tensor:
        y = self.narrow(self.pool(self.stem(x)))
        z = self.depthwise(self.expand(y))
        y = y + self.project(z * self.squeeze(z.mean((2, 3), keepdim=True)).sigmoid())
        y = self.strided(y)
        y = torch.relu(y + self.residual(y))
        logits: Tensor = self.head(y.mean((2, 3)))
        return logits


def session_of(model: nn.Module, folder: Path, **spec: object) -> ort.InferenceSession:
    joint = trace(snapshot(model.float()), CamSpec(**spec), SIZE, keep_layers=True)  # type: ignore[arg-type]
    write_onnx(joint.portable(), folder / "joint.onnx", "{}")
    return ort.InferenceSession(str(folder / "joint.onnx"), providers=["CPUExecutionProvider"])


def run(session: ort.InferenceSession, images: Tensor) -> dict[str, np.ndarray]:
    targets = np.full((len(images), 1), -1, np.int64)
    names = [entry.name for entry in session.get_outputs()]
    found = session.run(None, {"images": images.numpy(), "targets": targets})
    return dict(zip(names, found, strict=True))


@pytest.mark.long
@pytest.mark.parametrize(
    ("network", "names"),
    [
        ("gated", ("stem", "narrow", "expand", "depthwise", "project", "strided", "residual")),
        pytest.param(
            "resnet18",
            ("layer1.0", "layer2.1", "layer3.0", "layer4.1"),
            marks=pytest.mark.slow,
        ),
        ("squeezenet1_1", ("features.1", "features.4", "features.12")),
    ],
)
def test_layer_maps_equal_autograd(network: str, names: tuple[str, ...], tmp_path: Path) -> None:
    """On inputs and batch sizes that the trace has not seen, against float64."""
    torch.manual_seed(0)
    model = Gated() if network == "gated" else torchvision.models.get_model(network, num_classes=9)
    model = calibrated(model, SIZE)
    session = session_of(model, tmp_path, layers=names)
    exact = model.double()
    for batch in (1, 3):
        images = torch.randn(batch, 3, *SIZE)
        found = run(session, images)
        classes = torch.from_numpy(found["classes"])[:, 0]
        for name in names:
            acts, grads = acts_and_grads(exact, name, images.double(), classes, "logprob")
            expected = (grads.mean((2, 3), keepdim=True) * acts).sum(1).relu()
            error = (torch.from_numpy(found[f"map:{name}"])[:, 0] - expected).abs().max()
            assert error < 1e-3 * expected.max() + 1e-7, (name, float(error))


def operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(str(path)).graph.node)


def test_operators_of_a_file(tmp_path: Path) -> None:
    session_of(Gated().eval(), tmp_path, layers=("stem", "expand", "residual"))
    found = operators(tmp_path / "joint.onnx")
    assert found["MaxUnpool"] == 1 and found["MaxPool"] == 1
    assert found["Expand"] <= 3  # of scores and heatmaps, none of a layer's gradient
    assert found["GlobalAveragePool"] >= 3 and found["BatchNormalization"] >= 3
    assert {entry.domain for entry in onnx.load(str(tmp_path / "joint.onnx")).opset_import} == {""}


def test_onnx_runtime_keeps_its_blocked_layout(tmp_path: Path) -> None:
    """Few reorders are left: images, layer maps, and what has channels that fill no block."""
    model = torchvision.models.resnet18(num_classes=9).eval()
    session_of(model, tmp_path, layers=("layer3.1", "layer4.1"))
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(str(tmp_path / "joint.onnx"), options, providers=["CPUExecutionProvider"])
    found = operators(tmp_path / "optimised.onnx")
    if found["ReorderInput"] + found["ReorderOutput"] == 0:
        pytest.skip("this processor has no blocked layout")
    assert found["ReorderInput"] <= 3 and found["ReorderOutput"] <= 7, found
    assert found["LessOrEqual"] == 0, found


@pytest.mark.long
@pytest.mark.parametrize(
    "network",
    [
        "gated",
        pytest.param("resnet50", marks=pytest.mark.slow),
        pytest.param("efficientnet_b0", marks=pytest.mark.slow),
    ],
)
def test_weights_are_stored_once(
    network: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gradient's, transposed or turned around, are computed from the forward's."""
    monkeypatch.setattr(onnx_weights, "_LEAST_BYTES", 128)
    model = Gated() if network == "gated" else torchvision.models.get_model(network, num_classes=9)
    model = calibrated(model, SIZE)
    layers = ("stem",) if network == "gated" else "blocks"
    once = session_of(model, tmp_path, layers=layers)
    values: Counter[str] = Counter()
    for tensor in onnx.load(str(tmp_path / "joint.onnx")).graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        content = np.sort(array, axis=None)  # some are padded with zeros in one form
        if len(np.unique(content)) > 32:
            values[hashlib.sha256(np.round(content, 4).tobytes()).hexdigest()] += 1
    assert max(values.values()) == 1
    parameters = sum(p.numel() * 4 for p in model.parameters())
    assert (tmp_path / "joint.onnx").stat().st_size < 1.15 * parameters + 200_000

    monkeypatch.setattr(onnx_file, "share_weights", lambda *_, **__: 0)
    twice = session_of(model, tmp_path, layers=layers)
    images = torch.randn(3, 3, *SIZE)
    for name, found in run(once, images).items():
        expected = run(twice, images)[name]
        np.testing.assert_allclose(found, expected, atol=2e-6 * np.abs(expected).max())


class Odd(nn.Module):
    """Convolutions in groups, with different heights and widths, transposed; two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.groups = nn.Conv2d(16, 32, (3, 5), padding=(1, 2), groups=4)
        self.strided = nn.Conv2d(32, 16, (2, 1), (2, 1))
        self.up = nn.ConvTranspose2d(16, 16, 3, 2, 1)
        self.same = nn.Conv2d(16, 16, 3, 1, 1)
        self.again = nn.Conv2d(16, 16, 3, 1, 1)
        self.again.weight = self.same.weight
        self.head = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 9))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.groups(torch.relu(self.stem(x))))
        y = torch.relu(self.up(torch.relu(self.strided(y))))
        y = torch.relu(self.again(torch.relu(self.same(y))))
        logits: Tensor = self.head(y.mean((2, 3)))
        return logits


def test_forms_of_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_weights, "_LEAST_BYTES", 128)
    torch.manual_seed(1)
    model = Odd().eval()
    names = ("stem", "groups", "strided", "up", "same")
    found = run(session_of(model, tmp_path, layers=names), images := torch.randn(3, 3, *SIZE))
    exact = model.double()
    classes = torch.from_numpy(found["classes"])[:, 0]
    for name in names:
        acts, grads = acts_and_grads(exact, name, images.double(), classes, "logprob")
        expected = (grads.mean((2, 3), keepdim=True) * acts).sum(1).relu()
        error = (torch.from_numpy(found[f"map:{name}"])[:, 0] - expected).abs().max()
        assert error < 1e-3 * expected.max() + 1e-7, (name, float(error))
    assert {"Transpose", "Gather"} <= operators(tmp_path / "joint.onnx").keys()


def test_weights_in_sixteen_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are rounded, and what float16 cannot hold is not; the computation is in float32."""
    monkeypatch.setattr(onnx_weights, "_LEAST_BYTES", 128)
    model = calibrated(Gated(), SIZE)
    with torch.no_grad():
        model.project.weight[0, 0] = 1e5
    path = tmp_path / "half.onnx"
    joint = trace(snapshot(model), CamSpec(layers=("stem", "residual")), SIZE)
    write_onnx(joint.portable(), path, "{}", weights="float16")
    stored = [t for t in onnx.load(str(path)).graph.initializer if np.prod(t.dims) > 32]
    full = [t for t in stored if t.data_type == onnx.TensorProto.FLOAT]
    assert full and all(np.abs(onnx.numpy_helper.to_array(t)).max() == 1e5 for t in full)
    assert any(t.data_type == onnx.TensorProto.FLOAT16 for t in stored)

    for parameter in model.parameters():
        if parameter.abs().max() < 1e5 and parameter.ndim > 1:
            parameter.data = parameter.data.half().float()
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    images = torch.randn(3, 3, *SIZE)
    logits = run(session, images)["logits"]
    with torch.no_grad():
        expected = model(images).numpy()
    # Normalisations are folded before weights are rounded, so the roundings are not the same.
    assert np.abs(logits - expected).max() < 5e-3 * np.abs(expected).max()


def test_weights_that_no_protobuf_holds_lie_beside_the_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = calibrated(Gated(), SIZE)
    (tmp_path / "small").mkdir()
    inside = session_of(model, tmp_path / "small", layers=("strided", "residual"))
    monkeypatch.setattr(onnx_file, "EMBEDDED_BYTES", 1000)
    (tmp_path / "large").mkdir()
    beside = session_of(model, tmp_path / "large", layers=("strided", "residual"))
    files = {path.name: path.stat().st_size for path in (tmp_path / "large").iterdir()}
    whole = (tmp_path / "small" / "joint.onnx").stat().st_size
    assert set(files) == {"joint.onnx", "joint.onnx.data"}
    assert files["joint.onnx"] < whole <= files["joint.onnx"] + files["joint.onnx.data"] + 4096
    images = torch.randn(3, 3, *SIZE)
    for name, found in run(beside, images).items():
        np.testing.assert_array_equal(found, run(inside, images)[name])
