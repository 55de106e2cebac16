"""Files for a runtime have what it has, give the same numbers everywhere, and are checked."""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import fake_cuda
import numpy as np
import onnx
import pytest
import torch
import torchvision
from onnx import TensorProto
from onnx_nodes import one_node
from torch import Tensor, nn

from combicam import Explainer, check_file, export
from combicam.errors import ArtifactError
from combicam.export.formats import onnx_file
from combicam.export.formats.artifact import read_description
from combicam.export.formats.runtimes import RUNTIMES

SIZE = (48, 48)


class Pooled(nn.Module):
    """Max pools of every kind, a gate, strides, a linear layer with a gradient behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU())
        self.tiles = nn.MaxPool2d(2)
        self.middle = nn.Sequential(nn.Conv2d(16, 24, 3, padding=1), nn.SiLU())
        self.overlapping = nn.MaxPool2d(3, stride=2, padding=1)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(24, 24, 1), nn.Sigmoid())
        self.strided = nn.Sequential(nn.Conv2d(24, 32, 3, stride=2, padding=1), nn.ReLU6())
        nn.init.normal_(self.strided[0].weight, std=3)  # beyond both bounds
        self.rest = nn.MaxPool2d(5, ceil_mode=True)
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(128, 200), nn.ReLU(), nn.Linear(200, 300))

    def forward(self, x: Tensor) -> Tensor:
        x = self.overlapping(self.middle(self.tiles(self.stem(x))))
        logits: Tensor = self.head(self.rest(self.strided(x * self.gate(x))))
        return logits


def pooled(exact: bool = False, **options: Any) -> Explainer:
    torch.manual_seed(0)
    model = Pooled().eval()
    model = model.double() if exact else model
    layers = ("stem", "middle", "strided")
    return Explainer(model, SIZE, layers=layers, keep_layers=True, device="cpu", **options)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, explainer = tmp_path_factory.mktemp("files"), pooled()
    for runtime in RUNTIMES:
        export(explainer, folder / f"{runtime}.onnx", runtime=runtime)
    return {runtime: folder / f"{runtime}.onnx" for runtime in RUNTIMES}


def counts(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(str(path)).graph.node)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_numbers(runtime: str, backend: str, files: dict[str, Path]) -> None:
    """Of every file in every runtime that is here, but OpenVINO, which has no unpooling."""
    images = torch.randn(5, 3, *SIZE, generator=torch.Generator().manual_seed(1))
    expected = pooled(exact=True)(images.double())
    if backend == "openvino":
        pytest.importorskip("openvino")
        if counts(files[runtime])["MaxUnpool"]:
            with pytest.raises(ArtifactError, match=r"MaxUnpool.*runtime='openvino'"):
                Explainer.load(files[runtime], backend=backend, device="cpu")
            return
    found = Explainer.load(files[runtime], backend=backend, device="cpu")(images, expected.targets)
    for name, maps in expected.layer_maps.items():
        assert (found.layer_maps[name] - maps).abs().max() < 2e-4 * maps.abs().max(), name
    assert (found.scores - expected.scores).abs().max() < 1e-5


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_file_for_a_runtime_has_what_it_has(runtime: str, files: dict[str, Path]) -> None:
    check = check_file(files[runtime], runtime)
    assert check.runs
    assert check.nodes == sum(counts(files[runtime]).values())
    assert read_description(files[runtime]).runtime == runtime
    slow = [concern.what for concern in check.concerns]
    assert slow == [] or (slow == ["ScatterElements"] and runtime in ("onnxruntime-cpu", "web"))


@pytest.mark.long
def test_openvino_explains_in_memory_what_it_could_not_read() -> None:
    pytest.importorskip("openvino")
    images = torch.randn(3, 3, *SIZE, generator=torch.Generator().manual_seed(1))
    expected = pooled()(images)
    found = pooled(backend="openvino")(images, expected.targets)
    assert (found.heatmaps - expected.heatmaps).abs().max() < 1e-4


def test_weights_are_stored_once_or_as_they_are_used(files: dict[str, Path]) -> None:
    """TensorRT reads no weight that nodes compute, but matrices transposed; others are smaller."""
    sizes = {runtime: path.stat().st_size for runtime, path in files.items()}
    assert sizes["tensorrt"] > sizes["onnxruntime-cuda"]
    for runtime, path in files.items():
        model = onnx.load(str(path))
        matrices = [w for w in model.graph.initializer if sorted(w.dims) == [200, 300]]
        assert len(matrices) == 1, runtime
        readers = [n for n in model.graph.node if matrices[0].name in n.input]
        assert {n.op_type for n in readers} == {"Gemm"} and len(readers) == 2, runtime
    computed = [
        node for node in check_file(files["web"], "tensorrt").concerns if "weight" in str(node)
    ]
    assert computed and not check_file(files["tensorrt"], "tensorrt").concerns


def test_other_runtimes_of_a_file(files: dict[str, Path]) -> None:
    check = check_file(files["onnxruntime-cpu"], "onnxruntime-cuda")
    assert check.runs and [str(c).split(":")[:2] for c in check.concerns] == [
        ["slow", " MaxUnpool"]
    ]
    check = check_file(files["onnxruntime-cpu"], "tensorrt")
    missing = {concern.what for concern in check.concerns if concern.effect == "missing"}
    assert missing == {"MaxUnpool", "MaxPool"} and not check.runs
    assert "no such operator" in str(check)


@pytest.mark.long
def test_the_command_that_builds_an_engine(files: dict[str, Path], tmp_path: Path) -> None:
    command = check_file(files["tensorrt"], "tensorrt").command
    assert command.startswith("trtexec --onnx=tensorrt.onnx --saveEngine=tensorrt.plan --noTF32 ")
    for kind, batch in (("min", 1), ("opt", 32), ("max", 64)):
        assert f" --{kind}Shapes=images:{batch}x3x48x48,targets:{batch}x1" in command
    half = tmp_path / "half.onnx"
    export(pooled(dtype="float16"), half, runtime="tensorrt", verify=False)
    check = check_file(half, "tensorrt")
    assert check.runs and "--stronglyTyped" in check.command


def test_what_cannot_be_written(tmp_path: Path) -> None:
    explainer = pooled()
    with pytest.raises(ValueError, match=r"expected runtime in .*'tensorrt'.*got 'coreml'"):
        export(explainer, tmp_path / "a.onnx", runtime="coreml")
    with pytest.raises(ValueError, match=r"expected an \.onnx file for runtime 'web', got '\.ts'"):
        export(explainer, tmp_path / "a.ts", runtime="web")
    with pytest.raises(ValueError, match="takes weights as they are stored"):
        export(explainer, tmp_path / "a.onnx", runtime="tensorrt", weights="float16")
    assert not list(tmp_path.iterdir())


class Odd(nn.Module):
    """Whole numbers' bits, which TensorRT does not compute with."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        odd = (x.detach() * 8).int() & 1
        logits: Tensor = self.head((x * odd).mean((2, 3)))
        return logits


@pytest.mark.long
def test_a_file_that_its_runtime_lacks_operators_of_is_not_kept(tmp_path: Path) -> None:
    torch.manual_seed(0)
    explainer = Explainer(Odd().eval(), SIZE, layers=("body",), device="cpu")
    path = tmp_path / "odd.onnx"
    with pytest.raises(ArtifactError, match="expected operators that tensorrt has, got missing"):
        export(explainer, path, runtime="tensorrt")
    assert not list(tmp_path.iterdir())
    export(explainer, path, runtime="tensorrt", allow_disagreement=True)
    assert not check_file(path, "tensorrt").runs
    export(explainer, path, runtime="onnxruntime-cpu")


def test_files_that_cannot_be_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match="expected a file"):
        check_file(tmp_path / "none.onnx", "web")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    with pytest.raises(ArtifactError, match="not an ONNX file"):
        check_file(broken, "web")
    path = one_node(tmp_path, "Relu", opset=18)
    model = onnx.load(str(path))
    model.graph.node[0].op_type = "Unknown"
    onnx.save(model, str(path))
    for runtime in ("onnxruntime-cpu", "onnxruntime-cuda", "web"):
        assert not check_file(path, runtime).runs


def test_large_and_slow_files(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).normal(size=(8, 2_000_000)).astype("f")
    path = one_node(tmp_path, "MatMul", weight)
    assert [c.what for c in check_file(path, "web").concerns] == ["a file of 64 MB"]
    half = one_node(tmp_path, "Relu", kind=TensorProto.FLOAT16)
    for runtime in ("web", "onnxruntime-cpu"):
        assert [c.what for c in check_file(half, runtime).concerns] == ["float16"]
    assert not check_file(half, "onnxruntime-cuda").concerns


def test_half_precision_converts_only_what_is_computed_in_float32(tmp_path: Path) -> None:
    """Images, logits, pooled gradients and what is weighted, two of a layer; no pairs."""
    path = tmp_path / "half.onnx"
    explainer = pooled(dtype="float16")
    export(explainer, path, runtime="onnxruntime-cuda", verify=False)
    nodes = onnx.load(str(path)).graph.node
    makers = {name: node for node in nodes for name in node.output}
    casts = [node for node in nodes if node.op_type == "Cast"]
    assert not [c for c in casts if getattr(makers.get(c.input[0]), "op_type", "") == "Cast"]
    pools = 2 * 3  # scattered in float32, and back
    assert len(casts) <= 2 * len(explainer.layers) + 3 + pools


class Stretched(Odd):
    """A pool to more cells than there are, which the exporter has to decompose."""

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.adaptive_avg_pool2d(self.body(x)[:, :, :3, :3], 7)
        logits: Tensor = self.head((x / 3 + 2 * x).mean((2, 3)))
        return logits


class Scaled(Odd):
    """Whole numbers beside decimals."""

    def forward(self, x: Tensor) -> Tensor:
        x = (self.body(x) * 3 + 1) / 2 - 1
        counts = (x.detach() > 1).sum((2, 3), keepdim=True)
        logits: Tensor = self.head((x * counts / 100).mean((2, 3)))
        return logits


@pytest.mark.parametrize("lacking", ["the pass", "the module"])
def test_half_precision_with_another_torch(lacking: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One without the names that are replaced: nothing is replaced."""
    program = torch.export.export(nn.Linear(2, 2).half(), (torch.zeros(1, 2).half(),))
    name = "torch.onnx._internal.exporter._fx_passes"
    assert not isinstance(onnx_file._as_typed(program), nullcontext)
    if lacking == "the pass":
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    else:
        monkeypatch.setitem(sys.modules, name, None)
    assert isinstance(onnx_file._as_typed(program), nullcontext)


@pytest.mark.long
@pytest.mark.parametrize("network", [Odd, Stretched, Scaled])
def test_half_precision_of_networks_that_mix_types(
    network: type[nn.Module], tmp_path: Path
) -> None:
    """Each takes another way through the exporter."""
    torch.manual_seed(0)
    model, path = network().eval(), tmp_path / "half.onnx"
    images = torch.randn(3, 3, *SIZE, generator=torch.Generator().manual_seed(1))
    expected = Explainer(model, SIZE, layers=("body",), device="cpu")(images)
    half = Explainer(model, SIZE, layers=("body",), dtype="float16", device="cpu")
    export(half, path, runtime="onnxruntime-cuda")
    found = Explainer.load(path, device="cpu")(images, expected.targets)
    assert (found.scores - expected.scores).abs().max() < 1e-2
    assert (found.heatmaps - expected.heatmaps).abs().median() < 1e-2


# What the provider needs to plan, on any machine that can build the libraries.
needs_libraries = pytest.mark.skipif(
    fake_cuda.provider() is None or fake_cuda.headers() is None or not shutil.which("gcc"),
    reason="needs onnxruntime-gpu, Triton's headers, gcc and nm",
)
ON_THE_CPU = {"Concat", "Shape", "Unsqueeze", "Gather", "Slice", "Squeeze", "Cast", "Range"}


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cuda")
    fake_cuda.build(folder)
    return folder


@needs_libraries
def test_the_cuda_provider_runs_all_but_shapes(files: dict[str, Path], libraries: Path) -> None:
    """By the provider's own plan. The files for CPUs show that this can fail."""
    placed = fake_cuda.placement(files["onnxruntime-cuda"], libraries)
    assert set(placed.get("CPUExecutionProvider", ())) <= ON_THE_CPU
    assert not placed["copies"]
    assert placed["stream"] == {"4660": 1}  # a caller's, as backends.onnxruntime_backend has one
    other = fake_cuda.placement(files["onnxruntime-cpu"], libraries)
    assert other["CPUExecutionProvider"]["MaxUnpool"] == 1
    assert other["copies"] == {"MemcpyToHost": 2, "MemcpyFromHost": 1}


@needs_libraries
@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", ["resnet18", "vgg11", "efficientnet_b0", "googlenet"])
def test_the_cuda_provider_runs_known_networks(
    name: str, dtype: str, tmp_path: Path, libraries: Path
) -> None:
    options = {"init_weights": False, "aux_logits": False} if name == "googlenet" else {}
    model = torchvision.models.get_model(name, weights=None, num_classes=10, **options).eval()
    explainer = Explainer(model, (96, 96), layers="stages", dtype=dtype, device="cpu")
    path = tmp_path / "model.onnx"
    export(explainer, path, runtime="onnxruntime-cuda", verify=False)
    placed = fake_cuda.placement(path, libraries)
    assert set(placed.get("CPUExecutionProvider", ())) <= ON_THE_CPU and not placed["copies"]
