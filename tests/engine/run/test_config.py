"""What a configuration refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from combicam import CamSpec
from combicam.engine.explain.config import ComputeConfig
from combicam.engine.images.decode import DecodeConfig
from combicam.engine.run.config import DistributionConfig, RunConfig, StorageConfig


@pytest.mark.parametrize(
    "changes",
    [
        {"input": ""},
        {"batch_size": 0},
        {"workers": 0},
        {"shard_size": 0},
        {"overlays": -1},
        {"heatmap_size": (0, 3)},
        {"heatmap_size": (3,)},
    ],
)
def test_values_that_cannot_be(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"RunConfig: expected {next(iter(changes))}"):
        RunConfig(**{"input": "in", "output": Path("out"), "model": "demo"} | changes)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_graphs_of_other_runtimes_are_refused(backend: str) -> None:
    with pytest.raises(ValueError, match=f"expected cuda_graphs or backend '{backend}', got both"):
        ComputeConfig("cuda", backend=backend, cuda_graphs=True)


@pytest.mark.parametrize("method", ["scorecam", "ablationcam"])
def test_graphs_of_a_pass_per_channel_are_refused(method: str) -> None:
    compute, cam = ComputeConfig("cuda", cuda_graphs=True), CamSpec(method=method)
    with pytest.raises(ValueError, match=f"expected cuda_graphs or method '{method}', got both"):
        RunConfig("in", Path("out"), "demo", cam=cam, compute=compute)


@pytest.mark.parametrize("devices", [(), ("cpu", "cuda:1"), ("all",)])
def test_streams_of_a_gpu_are_refused_before_it_is_asked_for(devices: tuple[str, ...]) -> None:
    compute = ComputeConfig(None if devices else "cuda", streams=2)
    distribution = DistributionConfig(devices)
    with pytest.raises(ValueError, match=r"expected a CPU for streams=2, got (all|(cpu )?cuda)"):
        RunConfig("in", Path("out"), "demo", compute=compute, distribution=distribution)


def test_paths_are_converted() -> None:
    config = RunConfig(Path("in"), "out", "demo", heatmap_size=[3, 4])  # type: ignore[arg-type]
    assert (config.input, config.output) == ("in", Path("out"))
    assert config.storage == StorageConfig(heatmap_size=(3, 4))


def test_fields_of_nested_configurations_are_keywords() -> None:
    flat = RunConfig("in", Path("out"), "demo", store="grid", devices=["cpu"], max_pixels=9)
    nested = RunConfig(
        "in",
        Path("out"),
        "demo",
        decode=DecodeConfig(max_pixels=9),
        storage=StorageConfig("grid"),
        distribution=DistributionConfig(("cpu",)),
    )
    assert flat == nested
    again = RunConfig("in", Path("out"), "demo", storage=flat.storage, shard_size=7)
    assert again.storage == StorageConfig("grid", shard_size=7)
    assert replace(flat, batch_size=1).storage == flat.storage
    with pytest.raises(TypeError, match=r"expected fields of .*'shard_size'.*, got \['shards'\]"):
        RunConfig("in", Path("out"), "demo", shards=3)
    both = RunConfig("in", Path("out"), "demo", ray_cpus=2, ray="local")
    assert both.distribution == DistributionConfig(ray="local", ray_cpus=2)
    for values in (("in",), ("in", "out", "demo", *[None] * 20)):
        with pytest.raises(TypeError, match=r"output|too many"):
            RunConfig(*values)


@pytest.mark.parametrize("name", ["input", "output"])
def test_unknown_stores_are_refused_by_name(name: str) -> None:
    paths = {"input": "photos", "output": "run"} | {name: "ftp://host/run"}
    with pytest.raises(ValueError, match=r"s3://, gs://, got ftp://host/run; mount it"):
        RunConfig(paths["input"], paths["output"], "fake")  # type: ignore[arg-type]
    config = RunConfig("s3://bucket/in", "s3://bucket/run/", "fake")  # type: ignore[arg-type]
    assert (config.input, str(config.output)) == ("s3://bucket/in", "s3://bucket/run")
