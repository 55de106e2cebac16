"""A run chooses its backend by measuring, keeps it, and finds it again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import configured, save_photos
from torch import nn

from combicam.engine import runner
from combicam.engine.explain import tuning
from combicam.engine.explain.explainer import Explainer
from combicam.engine.pipeline import calibration
from combicam.engine.run.config import DistributionConfig, RunConfig
from combicam.engine.run.open_run import open_run
from combicam.engine.runner import run, run_images
from combicam.export.models.models import LoadedModel, ModelConfig
from combicam.export.preprocess import Preprocess

AUTO: dict[str, Any] = {"batch_size": "auto"}


def build() -> LoadedModel:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, 2), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return LoadedModel(nn.Sequential(*layers), Preprocess((24, 32), resize="squash"), "tiny")


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Short runs are measured, too; the names of what is measured."""
    monkeypatch.setattr(calibration, "_FEW", 4)
    monkeypatch.setattr(calibration, "_WORTH_S", 0.0)
    monkeypatch.setattr(tuning, "SHORT_S", 0.0)
    monkeypatch.setattr(tuning, "_SAMPLE_S", 0.0)
    monkeypatch.setattr(calibration, "candidates", lambda _: ("torchscript", "onnxruntime"))
    names: list[str] = []
    plain = tuning.Tuner._measured

    def noting(self: Any, explainer: Any, name: str, size: int) -> float:
        names.append(name)
        return plain(self, explainer, name, size) * (100 if name == "onnxruntime" else 1)

    monkeypatch.setattr(tuning.Tuner, "_measured", noting)
    return names


def maps(path: Path) -> Any:
    return np.concatenate(
        [open_run(path).shard(i).heatmaps.astype(float) for i in open_run(path).shards]
    )


@pytest.mark.long
def test_a_run_measures_once(tmp_path: Path, measured: list[str], capsys: Any) -> None:
    save_photos(tmp_path / "in", 20)
    (tmp_path / "in" / "p000.jpg").write_bytes(b"broken")
    explainer = Explainer(build())
    config = configured(tmp_path, **AUTO, progress=True)
    summary = run_images(config, explainer)
    assert summary.images == 20
    choice = json.loads((config.output / "tuning.json").read_text())
    assert choice["backend"] == "onnxruntime"
    assert list(dict.fromkeys(measured)) == ["eager", "torchscript", "onnxruntime"]
    assert "combicam: onnxruntime in batches of" in capsys.readouterr().err
    usual = configured(tmp_path, output="usual", backend="eager", batch_size=4)
    run_images(usual, explainer)
    assert np.abs(maps(config.output) - maps(usual.output)).max() <= 1
    assert not (usual.output / "tuning.json").exists()

    # Continued: as it began, whatever this machine would measure now.
    measured.clear()
    written = {**choice, "backend": "torchscript", "batch_size": 3}
    (config.output / "tuning.json").write_text(json.dumps(written))
    (config.output / "shards" / "00001.parquet").unlink()
    (config.output / "records" / "00001.json").unlink()
    run_images(config, explainer)
    assert "torchscript in batches of 3" in capsys.readouterr().err
    assert measured == []

    # What is named now goes before what the run began with, which stays written.
    (config.output / "shards" / "00001.parquet").unlink()
    (config.output / "records" / "00001.json").unlink()
    run_images(configured(tmp_path, progress=True, backend="eager", batch_size="auto"), explainer)
    assert "eager in batches of 3" in capsys.readouterr().err
    (config.output / "shards" / "00001.parquet").unlink()
    (config.output / "records" / "00001.json").unlink()
    run_images(configured(tmp_path, progress=True, batch_size=5), explainer)
    assert "torchscript in batches of 5" in capsys.readouterr().err
    assert json.loads((config.output / "tuning.json").read_text()) == written
    assert measured == []

    # Another run on this machine; and one with another method.
    run_images(configured(tmp_path, output="second", **AUTO), explainer)
    assert measured == []
    assert json.loads((tmp_path / "second" / "tuning.json").read_text()) == choice
    other = Explainer(build(), method="layercam")
    run_images(configured(tmp_path, output="third", **AUTO), other)
    assert measured[0] == "eager"


@pytest.mark.long
def test_what_is_named_is_kept(tmp_path: Path, measured: list[str]) -> None:
    save_photos(tmp_path / "in", 12)
    explainer = Explainer(build())
    sized = configured(tmp_path, output="sized", batch_size=2)
    run_images(sized, explainer)
    assert json.loads((sized.output / "tuning.json").read_text())["batch_size"] == 2
    measured.clear()
    torchscript = Explainer(build(), backend="torchscript")
    named = configured(tmp_path, output="named", **AUTO, backend="torchscript")
    run_images(named, torchscript)
    assert set(measured) == {"torchscript"}
    assert json.loads((named.output / "tuning.json").read_text())["backend"] == "torchscript"


@pytest.mark.slow
def test_workers_get_what_was_measured(tmp_path: Path, measured: list[str]) -> None:
    save_photos(tmp_path / "in", 24)
    model = ModelConfig(f"{__name__}:build")
    config = configured(tmp_path, model=model, devices=("cpu", "cpu"), **AUTO)
    assert run(config).images == 24
    assert json.loads((config.output / "tuning.json").read_text())["backend"] == "onnxruntime"
    alone = configured(tmp_path, model=model, output="alone", backend="eager", batch_size=4)
    run(alone)
    assert np.abs(maps(config.output) - maps(alone.output)).max() <= 1


def test_a_damaged_file_is_measured_again(tmp_path: Path, measured: list[str]) -> None:
    save_photos(tmp_path / "in", 12)
    config = configured(tmp_path, **AUTO)
    run_images(config, Explainer(build()))
    for path in (config.output / "tuning.json", *calibration_files()):
        path.write_text("{")
    (config.output / "shards" / "00000.parquet").unlink()
    (config.output / "records" / "00000.json").unlink()
    measured.clear()
    run_images(config, Explainer(build()))
    assert measured[0] == "eager"


def calibration_files() -> list[Path]:
    import os

    return list(Path(os.environ["XDG_CACHE_HOME"], "combicam", "tuning").glob("*.json"))


def test_a_cache_that_cannot_be_written(
    tmp_path: Path, measured: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    save_photos(tmp_path / "in", 12)
    run_images(configured(tmp_path, **AUTO), Explainer(build()))
    assert (tmp_path / "run" / "tuning.json").exists()


def test_a_program_keeps_its_threads(
    tmp_path: Path, fake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was fastest for its run."""
    save_photos(tmp_path / "in", 3)
    before = torch.get_num_threads()

    def chosen(config: Any, plan: Any, *_: Any) -> Any:
        torch.set_num_threads(1)
        return config, plan

    monkeypatch.setattr(runner, "calibrated", chosen)
    torch.set_num_threads(2)
    try:
        run_images(configured(tmp_path), fake())
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_few_images_are_not_measured(tmp_path: Path, measured: list[str]) -> None:
    save_photos(tmp_path / "in", 4)
    run_images(configured(tmp_path, **AUTO), Explainer(build()))
    assert measured == []
    assert not (tmp_path / "run" / "tuning.json").exists()


@pytest.mark.parametrize(
    ("options", "streams", "batch"),
    [
        ({"batch_size": "auto"}, 4, 8),
        ({"batch_size": "auto", "streams": 3}, 3, 32),
        ({"batch_size": 2}, 1, 2),
        ({"batch_size": 2, "streams": 3, "backend": "eager"}, 3, 2),
        ({"batch_size": "auto", "backend": "onnxruntime"}, 1, 32),
        ({"batch_size": "auto", "method": "ablationcam"}, 1, 32),
    ],
)
def test_streams_of_short_runs(
    options: dict[str, Any],
    streams: int,
    batch: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is explained at once: 8 images on each thread, unless the batch size is named."""
    save_photos(tmp_path / "in", 4)
    taken: list[RunConfig] = []
    process = runner._process
    monkeypatch.setattr(runner, "_process", lambda c, *rest: taken.append(c) or process(c, *rest))
    method = options.pop("method", "gradcam")
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        explainer = Explainer(build(), method=method, backend=options.get("backend", "eager"))
        run_images(configured(tmp_path, **options), explainer)
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)
    (config,) = taken
    assert (config.compute.streams or 1, config.batch) == (streams, batch)
    if streams == 4:  # two processes have half of the threads each
        shared = replace(config, batch_size="auto", compute=replace(config.compute, streams=None))
        shared = replace(shared, distribution=DistributionConfig(devices=("cpu", "cpu")))
        torch.set_num_threads(4)
        assert calibration.unmeasured(shared, explainer).compute.streams == 2
        torch.set_num_threads(before)


def test_batches_of_a_gpu(tmp_path: Path) -> None:
    """Short runs take large ones; those that are measured are what a shard is divided into."""
    explainer, gpu = Explainer(build()), torch.device("cuda", 0)
    explainer.device = gpu
    config = configured(tmp_path, batch_size="auto", shard_size=1000)
    assert calibration.unmeasured(config, explainer).batch == 128
    named = replace(config, batch_size=7)
    assert calibration.unmeasured(named, explainer) == named
    assert calibration._sizes(config, gpu) == [32, 63, 125, 250]
    assert calibration._sizes(configured(tmp_path, shard_size=50), gpu) == [25, 50]
    assert calibration._sizes(config, torch.device("cpu")) == tuning.SIZES["cpu"]


def test_streams_change_no_row(tmp_path: Path) -> None:
    save_photos(tmp_path / "in", 30)
    (tmp_path / "in" / "p003.jpg").write_bytes(b"broken")
    runs = []
    for streams in (1, 3):
        config = configured(tmp_path, output=f"{streams}", batch_size=4, streams=streams)
        summary = run_images(config, Explainer(build()))
        assert summary.failures == {"decode_error": 1}
        assert summary.stages["explain"].busy > 0
        runs.append(config.output)
    one, other = (open_run(path).table() for path in runs)
    assert one.equals(other) and len(one) == 30
    assert np.array_equal(maps(runs[0]), maps(runs[1]))


def test_nothing_can_be_decoded(tmp_path: Path, measured: list[str]) -> None:
    (tmp_path / "in").mkdir()
    for i in range(9):
        (tmp_path / "in" / f"{i}.jpg").write_bytes(b"broken")
    summary = run_images(configured(tmp_path, **AUTO), Explainer(build()))
    assert summary.failures == {"decode_error": 9}
    assert measured == []


def test_gpus_replay_what_is_left_to_the_run(tmp_path: Path) -> None:
    explainer = Explainer(build())

    def replays(**fields: Any) -> bool:
        config = calibration._with_graphs(configured(tmp_path, **fields), explainer)
        return config.compute.cuda_graphs

    assert not replays(**AUTO, backend="auto")  # on a CPU
    explainer.device = torch.device("cuda", 0)
    assert replays(**AUTO, backend="auto")
    assert not replays(backend="eager") and not replays(backend="auto", explain=("1",))
    explainer = Explainer(replace(build(), preprocess=Preprocess((24, 32), resize="short-side")))
    explainer.device = torch.device("cuda", 0)
    assert not replays(backend="auto")  # a graph for every size
