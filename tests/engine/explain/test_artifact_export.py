"""Artifacts: executed, on other photos and batch sizes than traced, by other processes."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from cam_oracle import assert_rounding_only, combi_cam
from torch import Tensor, nn

from combicam import ArtifactError, Explainer, LoadedModel, export
from combicam.engine.explain import artifact_export as exporting
from combicam.engine.explain.sessions import Request
from combicam.export.formats.artifact import Description

Draw = Callable[[int, int], Tensor]


def typical_error(found: Tensor, expected: Tensor) -> float:
    """Of the median image: one in thirty has a ReLU whose input is zero to rounding."""
    return float((found - expected).abs().amax((1, 2, 3)).median())


@pytest.fixture(scope="module")
def explainer(demo_model: LoadedModel) -> Explainer:
    return Explainer(demo_model, targets=2, keep_layers=True)


@pytest.fixture(scope="module", params=[".onnx", ".ts"])
def artifact(
    request: pytest.FixtureRequest, explainer: Explainer, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("artifact") / f"planet{request.param}"
    found = export(explainer, path)
    assert found is not None and found.max_heatmap_error < 1e-4 and found.max_logit_error < 1e-3
    return path


def test_parity_with_eager_autograd(
    artifact: Path, demo_model: LoadedModel, postcards: Draw
) -> None:
    loaded = Explainer.load(artifact)
    model = copy.deepcopy(demo_model.module).double()
    errors = []
    for batch in (1, 15):
        images = postcards(batch, 300 + batch)
        found = loaded(images)
        inputs = demo_model.preprocess.normalize(images).double()
        names = [info.name for info in loaded.layers]
        for k in range(2):
            expected = combi_cam(model, names, inputs, found.targets[:, k])
            errors.append((found.heatmaps[:, k] - expected).abs().amax((1, 2)))
        torch.testing.assert_close(found.logits.double(), model(inputs), atol=1e-4, rtol=1e-4)
    assert_rounding_only(torch.cat(errors))


@pytest.mark.long
@pytest.mark.parametrize(("method", "suffix"), [("gradcam", ".onnx"), ("layercam", ".ts")])
def test_gated_maps_in_memory_and_in_files(
    method: str, suffix: str, demo_model: LoadedModel, postcards: Draw, tmp_path: Path
) -> None:
    explainer = Explainer(demo_model, layers="stages", method=method, fuse="gated")
    model = copy.deepcopy(demo_model.module).double()
    images = postcards(16, 500)
    inputs = demo_model.preprocess.normalize(images).double()
    names = [info.name for info in explainer.layers]
    export(explainer, tmp_path / f"gated{suffix}")
    found = [explainer(images), Explainer.load(tmp_path / f"gated{suffix}")(images)]
    expected = combi_cam(model, names, inputs, found[0].targets[:, 0], method, is_gated=True)
    for explanation in found:
        assert_rounding_only((explanation.heatmaps[:, 0] - expected).abs().amax((1, 2)))


def test_everything_rides_in_the_file(artifact: Path, explainer: Explainer) -> None:
    loaded = Explainer.load(artifact)
    assert loaded.spec == explainer.spec and loaded.layers == explainer.layers
    assert loaded.preprocess == explainer.preprocess and loaded.classes == explainer.classes
    assert loaded.fingerprint() == explainer.fingerprint()
    assert "postcards" in loaded.note


def test_layer_maps_and_given_targets(
    artifact: Path, explainer: Explainer, postcards: Draw
) -> None:
    images, targets = postcards(2, 17), [[3, 35], [20, -1]]
    ours, theirs = Explainer.load(artifact)(images, targets), explainer(images, targets)
    assert torch.equal(ours.targets, theirs.targets)
    assert ours.layer_maps.keys() == theirs.layer_maps.keys()
    for name, layer_map in theirs.layer_maps.items():
        bound = 1e-4 * float(layer_map.max())
        assert (ours.layer_maps[name] - layer_map).abs().max() <= bound
    with pytest.raises(ArtifactError, match="K=1; export it with"):
        Explainer.load(artifact)(images, [1, 2])
    with pytest.raises(ArtifactError, match="'weights'"):
        Explainer.load(artifact)(images, torch.ones(2, 2, 36))
    with pytest.raises(ArtifactError, match="loaded from a file"):
        export(Explainer.load(artifact), artifact.with_suffix(".onnx"))


def test_runs_without_combicam(artifact: Path, explainer: Explainer, tmp_path: Path) -> None:
    """An ordinary server needs the runtime alone."""
    images = torch.randn(5, 3, 160, 160, generator=torch.Generator().manual_seed(3))
    np.save(tmp_path / "images.npy", images.numpy())
    run = {
        ".onnx": "import onnxruntime as ort; s = ort.InferenceSession(path); "
        "out = s.run(['heatmaps'], {'images': x, 'targets': t})[0]",
        ".ts": "import torch; m = torch.jit.load(path); "
        "out = m(torch.from_numpy(x), torch.from_numpy(t))[3].numpy()",
    }[artifact.suffix]
    script = (
        f"import sys, numpy as np; path = {str(artifact)!r}; x = np.load('images.npy'); "
        f"t = np.array([[-1, -2]] * 5); {run}; np.save('out.npy', out); "
        "assert 'combicam' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], cwd=tmp_path, check=True)
    out = torch.from_numpy(np.load(tmp_path / "out.npy"))
    assert typical_error(out, explainer(images).heatmaps) < 1e-4


@pytest.mark.long
def test_onnx_file_is_in_order(explainer: Explainer, tmp_path: Path) -> None:
    path = tmp_path / "planet.onnx"
    path.with_name("planet.onnx.data").touch()  # left by a network of more than 2 GB
    export(explainer, path, target_input="none")
    model = onnx.load(str(path))
    onnx.checker.check_model(model, full_check=True)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 18)]
    batch = [i.type.tensor_type.shape.dim[0].dim_param for i in model.graph.input]
    assert [i.name for i in model.graph.input] == ["images"] and batch[0]
    assert not path.with_name("planet.onnx.data").exists()
    names = [o.name for o in model.graph.output]
    assert names[:5] == ["logits", "classes", "scores", "heatmaps", "ranges"]
    assert names[5:] == [f"map:{info.name}" for info in explainer.layers]
    kinds = {node.op_type for node in model.graph.node}
    assert "Resize" in kinds and "Conv" in kinds
    described = json.loads({e.key: e.value for e in model.metadata_props}["combicam"])
    assert described["classes"]["names"][0] == explainer.classes.names[0]  # type: ignore[union-attr]
    loaded = Explainer.load(path)
    images = torch.randn(5, 3, 160, 160)
    assert typical_error(loaded(images).heatmaps, explainer(images).heatmaps) < 1e-4


@pytest.mark.long
@pytest.mark.parametrize("suffix", [".onnx", pytest.param(".ts", marks=pytest.mark.slow)])
def test_regions_in_half_precision(suffix: str, demo_model: LoadedModel, tmp_path: Path) -> None:
    explainer = Explainer(demo_model, layers="stages", dtype="float16")
    path = tmp_path / f"regions{suffix}"
    found = export(explainer, path, target_input="weights")
    assert found is not None
    regions = torch.rand(2, 1, 36)
    images = torch.randn(2, 3, 160, 160)
    ours, theirs = Explainer.load(path)(images, regions), explainer(images, regions)
    torch.testing.assert_close(ours.scores, theirs.scores, atol=5e-3, rtol=0)
    assert (ours.heatmaps - theirs.heatmaps).abs().mean() < 0.02
    with pytest.raises(ValueError, match="region weights that this artifact"):
        Explainer.load(path)(images)


def test_a_file_that_disagrees_is_not_kept(
    explainer: Explainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "planet.ts"

    def wrong(joint: Any, *rest: Any) -> None:
        weight = next(b for n, b in joint.module.named_buffers() if b.ndim == 4)
        original = weight.clone()
        weight.mul_(1.5)
        try:
            write(joint, *rest)
        finally:
            weight.copy_(original)

    write = exporting.write_artifact
    monkeypatch.setattr(exporting, "write_artifact", wrong)
    with pytest.raises(ArtifactError, match="nothing was written"):
        export(explainer, path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError, match="existing folder"):
        export(explainer, tmp_path / "none" / "planet.ts")


class Pools(nn.Module):
    """What portable formats have no gradient of, and a resize whose factor is not its sizes'."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)
        self.up = nn.Upsample(scale_factor=1.5, mode="bilinear")
        self.average, self.max = nn.AdaptiveAvgPool2d((5, 4)), nn.AdaptiveMaxPool2d(1)
        self.pool = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.head = nn.Sequential(nn.Linear(8 * 21, 6), nn.BatchNorm1d(6), nn.Linear(6, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.up(self.first(x).relu()))
        logits: Tensor = self.head(
            torch.cat([self.average(x).flatten(1), self.max(x).flatten(1)], 1)
        )
        return logits


@pytest.mark.long
@pytest.mark.parametrize("suffix", [".onnx", ".ts"])
def test_pools_and_resizes_in_every_format(suffix: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    explainer = Explainer(Pools(), (31, 37), layers=["first"], method="elementwise")
    found = export(explainer, tmp_path / f"pools{suffix}")
    assert found is not None
    assert found.max_heatmap_error < 1e-4 and found.max_logit_error < 1e-5


def test_files_that_are_no_artifacts(tmp_path: Path, explainer: Explainer) -> None:
    with pytest.raises(ValueError, match=r"\.onnx .*\.ts .*\.pt2 .*, got .*model\.pb"):
        export(explainer, tmp_path / "model.pb")
    with pytest.raises(FileNotFoundError):
        Explainer.load(tmp_path / "none.onnx")
    for name in ("broken.onnx", "broken.ts", "broken.pt2"):
        (tmp_path / name).write_bytes(b"nothing of the kind")
        with pytest.raises(ArtifactError, match=name):
            Explainer.load(tmp_path / name)
    foreign = onnx.helper.make_model(onnx.helper.make_graph([], "empty", [], []))
    onnx.save(foreign, str(tmp_path / "foreign.onnx"))
    with pytest.raises(ArtifactError, match="export the model"):
        Explainer.load(tmp_path / "foreign.onnx")
    torch.jit.save(torch.jit.script(torch.nn.ReLU()), str(tmp_path / "foreign.ts"))  # type: ignore[no-untyped-call]
    with pytest.raises(ArtifactError, match="export the model"):
        Explainer.load(tmp_path / "foreign.ts")
    with zipfile.ZipFile(tmp_path / "foreign.pt2", "w") as file:
        file.writestr("foreign/data/aotinductor/model/code_metadata.json", "{}")
    with pytest.raises(ArtifactError, match="export the model"):
        Explainer.load(tmp_path / "foreign.pt2")


def test_natural_noise_has_a_falling_spectrum() -> None:
    images = exporting.natural_noise(2, (64, 96))
    power = torch.fft.rfft2(images).abs().square().mean((0, 1))
    assert power[1:4, 1:4].mean() > 20 * power[16:32, 16:32].mean()
    torch.testing.assert_close(images.std((-2, -1)), torch.ones(2, 3), atol=0.01, rtol=0)


def test_words_that_say_nothing_of_targets(tmp_path: Path, explainer: Explainer) -> None:
    with pytest.raises(ValueError, match=r"target_input in .*'weights'.*got 'weight'"):
        export(explainer, tmp_path / "model.ts", target_input="weight")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"target_input in .*got 'regions'"):
        Request("regions", 1)
    values = json.loads(explainer.description.to_json())
    values["signature"]["target_input"] = "weight"
    with pytest.raises(ArtifactError, match=r"got 'weight'.*export it again"):
        Description.from_json(json.dumps(values))
