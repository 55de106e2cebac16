"""What only a GPU can show: float32 as IEEE has it, equal bytes, every backend, files, runs."""

from __future__ import annotations

import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torchvision
from cam_oracle import calibrated
from PIL import Image
from torch import Tensor, nn

from combicam import Explainer, LoadedModel, export
from combicam.engine.explain import backends
from combicam.engine.explain.config import ComputeConfig
from combicam.engine.images.decode import (
    DecodeConfig,
    Encoded,
    decode_image,
    decode_or_leave,
)
from combicam.engine.images.gpu_jpeg import GpuDecoder
from combicam.engine.run.config import RunConfig
from combicam.engine.runner import run
from combicam.export.models.models import ModelConfig, load_model

pytestmark = pytest.mark.gpu
SIZE = (96, 96)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """Convolutions of all kinds: with strides, per channel, gates, SiLU."""
    return calibrated(torchvision.models.get_model("efficientnet_b0", weights=None), SIZE)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(5, 3, *SIZE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("dtype", "limit"), [("float32", 1e-4), ("tf32", 5e-2)])
def test_logits_are_those_of_float64(
    model: nn.Module, images: Tensor, dtype: str, limit: float
) -> None:
    exact = model.double()(images.double())
    model.float()
    found = Explainer(model, SIZE, device="cuda", dtype=dtype)(images).logits.cpu()
    error = (found - exact).abs().max() / exact.abs().max()
    assert error < limit
    assert dtype == "float32" or error > 1e-4  # rounded indeed


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("backend", ["eager", "compile"])
def test_the_same_bytes_come_out_again(dtype: str, backend: str, images: Tensor) -> None:
    """Of residual blocks. Their max pool lies in front of what is explained: see docs/limits.md."""
    resnet = calibrated(torchvision.models.get_model("resnet18", weights=None), SIZE)
    explainer = Explainer(resnet, SIZE, device="cuda", dtype=dtype, backend=backend)
    first, second = explainer(images), explainer(images)
    assert torch.equal(first.heatmaps, second.heatmaps)
    assert torch.equal(first.logits, second.logits)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0"])
def test_fused_convolutions(
    name: str, dtype: str, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As near to float32 as without the pass, and the same bytes again."""
    network = calibrated(torchvision.models.get_model(name, weights=None), SIZE)
    exact = Explainer(network, SIZE, device="cuda")(images)
    explainer = Explainer(network, SIZE, device="cuda", dtype=dtype)
    found, again = (explainer(images, exact.targets) for _ in range(2))
    assert torch.equal(found.heatmaps, again.heatmaps) and torch.equal(found.logits, again.logits)
    monkeypatch.setattr(backends, "has_fused_convolutions", lambda device: False)
    plain = Explainer(network, SIZE, device="cuda", dtype=dtype)(images, exact.targets)
    assert not torch.equal(plain.logits, found.logits)  # it was not fused
    for a, b, whole in (
        (found.logits, plain.logits, exact.logits),
        (found.heatmaps, plain.heatmaps, exact.heatmaps),
    ):
        with_it, without = ((v.float() - whole).square().mean().sqrt() for v in (a, b))
        assert with_it < 1.5 * without + 1e-3


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_an_image_that_overflows_is_told(dtype: str, images: Tensor) -> None:
    """ReLU must keep NaN, also where it is part of a convolution."""
    resnet = calibrated(torchvision.models.get_model("resnet18", weights=None), SIZE)
    explainer = Explainer(resnet, SIZE, device="cuda", dtype=dtype)
    images[2] = torch.nan
    found = explainer(images)
    assert found.logits.isfinite().all(1).tolist() == [True, True, False, True, True]


@pytest.mark.parametrize("backend", ["eager", "compile", "torchscript", "aoti"])
def test_backends_agree_with_the_cpu(model: nn.Module, images: Tensor, backend: str) -> None:
    expected = Explainer(model, SIZE)(images)
    found = Explainer(model, SIZE, device="cuda", backend=backend)(images, expected.targets)
    torch.testing.assert_close(found.logits.cpu(), expected.logits, atol=1e-3, rtol=1e-3)
    assert (found.heatmaps.cpu() - expected.heatmaps).abs().flatten(1).amax(1).median() < 1e-3


@pytest.mark.parametrize("suffix", [".ts", ".pt2"])
def test_files_of_a_gpu(
    suffix: str, demo_model: LoadedModel, postcards: Callable[[int, int], Tensor], tmp_path: Path
) -> None:
    explainer = Explainer(demo_model, device="cuda")
    path = tmp_path / f"demo{suffix}"
    checked = export(explainer, path)
    assert checked is not None and checked.agrees
    cards = postcards(3, 0)
    found, expected = Explainer.load(path, device="cuda")(cards), explainer(cards)
    assert torch.equal(found.targets, expected.targets)
    assert (found.heatmaps - expected.heatmaps).abs().max() < 1e-3


def run_config(folder: Path, name: str, compute: ComputeConfig, decoder: str = "auto") -> RunConfig:
    """A run of FOLDER/in into FOLDER/NAME."""
    return RunConfig(
        str(folder / "in"),
        folder / name,
        ModelConfig("demo"),
        decode=DecodeConfig(decoder),
        compute=compute,
        progress=False,
    )


def test_a_run(photos: Callable[..., list[Path]], tmp_path: Path) -> None:
    photos(tmp_path / "in", 12)
    summary = run(run_config(tmp_path, "out", ComputeConfig("cuda", cuda_graphs=True)))
    assert summary.images == 12 and not summary.failures


def test_photos_are_not_mixed_up(tmp_path: Path) -> None:
    """Threads decode into images that they keep, batch after batch, while the GPU explains."""
    pytest.importorskip("nvidia.nvimgcodec")
    (tmp_path / "in").mkdir()
    random = np.random.default_rng(0)
    preprocess = load_model(ModelConfig("demo")).preprocess
    decoder = GpuDecoder(preprocess, torch.device("cuda", 0))
    files = []
    for i in range(900):
        coarse = Image.fromarray(random.integers(0, 256, (5, 4, 3), dtype=np.uint8))
        size = (240 + 16 * (i % 3), 320)
        path = tmp_path / "in" / f"{i:03d}.jpg"
        coarse.resize(size, Image.Resampling.BICUBIC).save(path, quality=90)
        files.append(path.read_bytes())
    expected = [torch.from_numpy(decode_image(data, preprocess).pixels).int() for data in files]
    left = [decode_or_leave(data, preprocess, DecodeConfig("gpu")) for data in files]
    batches = [[i % 900 for i in range(start, start + 128)] for start in range(0, 3600, 100)]
    with ThreadPoolExecutor(3) as pool:
        found = pool.map(lambda batch: decoder([left[i] for i in batch]), batches)
        for batch, photos in zip(batches, found, strict=True):
            for i, photo in zip(batch, photos, strict=True):
                assert photo is not None
                assert (photo.cpu().int() - expected[i]).abs().float().mean() < 1, i
    rows = {}
    for name in ("auto", "gpu"):
        assert not run(run_config(tmp_path, name, ComputeConfig("cuda"), name)).failures
        rows[name] = pq.read_table(tmp_path / name / "shards").sort_by("id")
    assert set(rows["gpu"].column("decoder").to_pylist()) == {"nvimagecodec"}
    scores = [np.array(rows[name].column("scores").to_pylist()) for name in rows]
    classes = [np.array(rows[name].column("targets").to_pylist()) for name in rows]
    same = (classes[0] == classes[1])[:, 0]
    assert same.mean() > 0.95 and np.median(np.abs(scores[0] - scores[1])[same]) < 0.02


def test_photos_are_decoded(tmp_path: Path) -> None:
    """Of many sizes, turned ones, and those that its engines do not take; by a run, too."""
    pytest.importorskip("nvidia.nvimgcodec")
    (tmp_path / "in").mkdir()
    random = np.random.default_rng(0)
    preprocess = load_model(ModelConfig("demo")).preprocess
    decoder = GpuDecoder(preprocess, torch.device("cuda", 0))
    files = []
    for i in range(40):
        coarse = random.integers(0, 256, (9, 7, 3), dtype=np.uint8)
        size = [(1, 1), (7, 63), (64, 48), (480, 360), (361, 241)][i % 5]
        exif = Image.Exif()
        exif[0x0112] = 1 + i % 8
        options = {"exif": exif} if i % 2 else {}
        file = io.BytesIO()
        mode = "L" if i % 7 == 0 else "RGB"
        sampling = "4:4:4" if mode == "L" else ["4:4:4", "4:2:2", "4:2:0"][i % 3]
        image = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).convert(mode)
        image.save(file, "JPEG", subsampling=sampling, quality=90, **options)
        files.append(file.getvalue())
        (tmp_path / "in" / f"{i:02d}.jpg").write_bytes(files[-1])
    left = [decode_or_leave(data, preprocess, DecodeConfig("gpu")) for data in files]
    encoded = [photo for photo in left if isinstance(photo, Encoded)]
    assert len(encoded) == len(files)
    taken = 0
    for data, found in zip(files, decoder(encoded), strict=True):
        if found is None:
            continue
        taken += 1
        expected = torch.from_numpy(decode_image(data, preprocess).pixels)
        difference = (found.cpu().int() - expected.int()).abs()
        assert difference.max() <= 3 and difference.float().mean() < 0.05
    assert taken >= 24  # all but the tiny ones
    summary = run(run_config(tmp_path, "out", ComputeConfig("cuda"), "gpu"))
    assert summary.images == 40 and not summary.failures
    decoders = pq.read_table(tmp_path / "out" / "shards").column("decoder").to_pylist()
    assert decoders.count("nvimagecodec") == taken
