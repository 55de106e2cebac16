"""AOTInductor packages: compiled once, run on other batch sizes, in processes without combicam."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from cam_oracle import calibrated, combi_cam
from torch import Tensor, nn

from combicam import (
    ArtifactError,
    ClassTable,
    Explainer,
    LoadedModel,
    ModelConfig,
    Preprocess,
    TraceError,
    export,
)
from combicam.engine.explain.artifact_export import natural_noise
from combicam.engine.explain.backends import aoti_backend
from combicam.engine.explain.sessions import ModelSession
from combicam.export.formats import aoti_file

SIZE = (24, 30)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, 2, 1),
            nn.ReLU(),
        )
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(x).mean((2, 3)))
        return logits


LAYERS = ["body.2", "body.4"]


def network() -> nn.Module:
    torch.manual_seed(0)
    return calibrated(Small(), SIZE)


def make(**changes: Any) -> Explainer:
    model = network()
    table = ClassTable(names=tuple(f"Köln {i}" for i in range(5)))
    loaded = LoadedModel(model, Preprocess(SIZE), "small", table)
    return Explainer(loaded, layers=LAYERS, **changes)


SERVER = """
import sys, numpy as np, torch
model = torch._inductor.aoti_load_package(sys.argv[1])
assert "combicam" in model.get_metadata()
for batch in (1, 3, 8):
    images = torch.from_numpy(np.load(f"images{batch}.npy"))
    outputs = model(images, torch.full((batch, 1), -1))
    np.save(f"heatmaps{batch}.npy", outputs[3].numpy())
assert "combicam" not in sys.modules
"""


@pytest.mark.slow
def test_package_runs_without_combicam_on_any_batch(tmp_path: Path) -> None:
    """Also under another name, and with torch's own checks of its inputs on."""
    explainer = make()
    found = export(explainer, tmp_path / "small.pt2")
    assert found is not None and found.agrees and found.max_heatmap_error < 1e-4
    shutil.move(tmp_path / "small.pt2", tmp_path / "other.pt2")
    for batch in (1, 3, 8):
        np.save(tmp_path / f"images{batch}.npy", natural_noise(batch, SIZE, seed=batch).numpy())
    environment = {**os.environ, "AOTI_RUNTIME_CHECK_INPUTS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", SERVER, "other.pt2"]
    subprocess.run(command, cwd=tmp_path, check=True, env=environment)
    loaded = Explainer.load(tmp_path / "other.pt2")
    assert loaded.device == torch.device("cpu")
    assert loaded.description == explainer.description
    assert loaded.classes is not None and loaded.classes.names[3] == "Köln 3"
    model = network().double()
    for batch in (1, 3, 8):
        images = natural_noise(batch, SIZE, seed=batch)
        served = torch.from_numpy(np.load(tmp_path / f"heatmaps{batch}.npy"))
        ours = loaded(images)
        assert torch.equal(ours.heatmaps, served)
        expected = combi_cam(model, LAYERS, images.double(), ours.targets[:, 0])
        assert (served[:, 0] - expected).abs().amax((1, 2)).median() < 1e-4
    with pytest.raises(ArtifactError, match=r"device 'cpu', for which .* got 'cuda:0'"):
        Explainer.load(tmp_path / "other.pt2", device="cuda:0")
    with pytest.raises(ValueError, match="'aoti' for"):
        Explainer.load(tmp_path / "other.pt2", backend="torchscript")
    assert ModelConfig(str(tmp_path / "other.pt2")).is_artifact


def test_description_is_read_from_the_archive_alone(tmp_path: Path) -> None:
    """No code is loaded: there is none in this file."""
    path = tmp_path / "model.pt2"
    found = {"combicam": "text", "torch": "2.99", "AOTI_DEVICE_KEY": "cuda"}
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("any/data/aotinductor/model/code.wrapper_metadata.json", json.dumps(found))
    assert aoti_file.read_aoti(path) == "text"
    assert aoti_file.aoti_device(path) == torch.device("cuda")
    assert "torch 2.99 for cuda" in aoti_file.aoti_origin(path)
    description = make().description.to_json()
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(
            "any/data/aotinductor/model/code.wrapper_metadata.json",
            json.dumps({"combicam": description, "AOTI_DEVICE_KEY": "cpu"}),
        )
    with pytest.raises(ArtifactError, match=r"cannot be loaded .* export it again"):
        Explainer.load(path)


@pytest.mark.parametrize(
    ("size", "copies", "batch"),
    [
        ((224, 224), 1, 64),
        ((64, 64), 1, 64),
        ((380, 380), 1, 16),
        ((224, 224), 5, 8),
        ((8192, 8192), 1, 2),
    ],
)
def test_kernels_are_tuned_for_a_batch_that_fills_a_gpu(
    size: tuple[int, int], copies: int, batch: int
) -> None:
    assert aoti_file.tuning_batch(size, copies) == batch


def test_a_package_for_a_gpu_is_tuned_for_such_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[int] = []

    class Compiled(Exception):
        pass

    def inputs(_joint: Any, batch: int = 2) -> Any:
        batches.append(batch)
        if len(batches) == 2:
            raise Compiled
        return (SimpleNamespace(device=torch.device("cuda")),)

    monkeypatch.setattr(aoti_file, "example_inputs", inputs)
    session = make(targets=2).session
    assert isinstance(session, ModelSession)
    with pytest.raises(Compiled):
        aoti_file.write_aoti(session.joint(session.top), Path("model.pt2"), "")
    assert batches == [2, 64]


@pytest.mark.parametrize("device", [None, "cuda", "cuda:0"])
def test_a_package_is_loaded_on_the_gpu_of_its_explainer(
    device: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its number: what is current when it is loaded need not be when it is called."""
    path = tmp_path / "model.pt2"
    metadata = {"combicam": make().description.to_json(), "AOTI_DEVICE_KEY": "cuda"}
    with zipfile.ZipFile(path, "w") as file:
        name = "any/data/aotinductor/model/code"
        file.writestr(f"{name}.wrapper_metadata.json", json.dumps(metadata))
        file.writestr(f"{name}.wrapper.so", "")
    loaded: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(
        "torch._inductor.aoti_load_package",
        lambda _path, run_single_threaded, device_index: loaded.append(device_index),
    )
    explainer = Explainer.load(path, device=device)
    expected = 0 if device == "cuda:0" else 1
    assert explainer.device == torch.device("cuda", expected) and loaded == [expected]


def test_calls_on_a_gpu_wait_for_each_other_only_until_they_are_launched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package's own locks wait for the device; its threads take turns instead."""
    path = tmp_path / "model.pt2"
    with zipfile.ZipFile(path, "w") as file:
        name = "any/data/aotinductor/model/code"
        file.writestr(f"{name}.wrapper_metadata.json", json.dumps({"AOTI_DEVICE_KEY": "cuda"}))
        file.writestr(f"{name}.wrapper.so", "")
    options: dict[str, Any] = {}
    running = most = 0

    def package(images: Tensor) -> list[Tensor]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        time.sleep(0.02)
        running -= 1
        return [images + 1]

    def load(_: str, **given: Any) -> Any:
        options.update(given)
        return package

    monkeypatch.setattr("torch._inductor.aoti_load_package", load)
    execute = aoti_backend(path, torch.device("cuda:1"))
    assert options == {"run_single_threaded": True, "device_index": 1}
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda i: execute([torch.full((1,), i)]), range(8)))
    assert [int(f[0]) for f in found] == list(range(1, 9)) and most == 1


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("target_input", ["none", "weights"])
def test_half_precision_and_other_targets(dtype: str, target_input: str, tmp_path: Path) -> None:
    explainer = make(dtype=dtype, targets=2, keep_layers=True)
    path = tmp_path / "small.pt2"
    found = export(explainer, path, target_input=target_input)
    assert found is not None and found.agrees
    loaded = Explainer.load(path)
    for batch in (1, 5):
        images = natural_noise(batch, SIZE, seed=batch)
        regions = torch.rand(batch, 2, 5) if target_input == "weights" else None
        answer = loaded(images, regions)
        assert answer.heatmaps.dtype == torch.float32 and answer.heatmaps.shape[:2] == (batch, 2)
        assert list(answer.layer_maps) == LAYERS


@torch.library.custom_op("combicam_test::twice", mutates_args=())
def _twice(x: Tensor) -> Tensor:
    return x * 2


@_twice.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Twice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.combicam_test.twice(x)


@pytest.mark.slow
def test_the_head_as_one_operator_gives_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on CUDA; here Inductor finds the reference in it."""
    explainer = make()
    joint: Any = explainer.session.joint(explainer.session.top)  # type: ignore[attr-defined]
    monkeypatch.setattr(type(joint), "portable", lambda self: self)
    found = export(explainer, tmp_path / "small.pt2")
    assert found is not None and found.agrees and found.max_heatmap_error < 1e-4


@pytest.mark.slow
def test_an_operator_that_torch_does_not_bring_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    explainer = Explainer(nn.Sequential(Twice(), network()), SIZE, layers=["1.body.2"])
    session: Any = explainer.session
    joint = session.joint(session.top)
    monkeypatch.setattr(type(joint), "portable", lambda self: self)
    with pytest.raises(TraceError, match=r"got combicam_test::twice, .*\.onnx or \.ts"):
        aoti_file.write_aoti(joint, tmp_path / "small.pt2", "")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_demo_network_and_its_32_bit_twin(demo_model: LoadedModel, tmp_path: Path) -> None:
    explainer = Explainer(demo_model)
    found = export(explainer, tmp_path / "planet.pt2")
    assert found is not None and found.agrees
    other = Explainer(demo_model, backend="aoti")
    images = natural_noise(5, explainer.input_size)
    torch.testing.assert_close(
        Explainer.load(tmp_path / "planet.pt2")(images).heatmaps,
        other(images).heatmaps,
        atol=1e-4,
        rtol=0,
    )
