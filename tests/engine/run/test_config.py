"""What a configuration refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from combicam.engine.run.config import RunConfig


@pytest.mark.parametrize(
    "changes",
    [
        {"input": ""},
        {"batch_size": 0},
        {"workers": 0},
        {"shard_size": 0},
        {"max_pixels": 0},
        {"overlays": -1},
        {"heatmap_size": (0, 3)},
        {"heatmap_size": (3,)},
    ],
)
def test_values_that_cannot_be(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"RunConfig: expected {next(iter(changes))}"):
        RunConfig(**{"input": "in", "output": Path("out"), "model": "demo"} | changes)


def test_paths_are_converted() -> None:
    config = RunConfig(Path("in"), "out", "demo", heatmap_size=[3, 4])  # type: ignore[arg-type]
    assert (config.input, config.output, config.heatmap_size) == ("in", Path("out"), (3, 4))


@pytest.mark.parametrize("name", ["input", "output"])
def test_unknown_stores_are_refused_by_name(name: str) -> None:
    paths = {"input": "photos", "output": "run"} | {name: "ftp://host/run"}
    with pytest.raises(ValueError, match=r"s3://, gs://, got ftp://host/run; mount it"):
        RunConfig(paths["input"], paths["output"], "fake")  # type: ignore[arg-type]
    config = RunConfig("s3://bucket/in", "s3://bucket/run/", "fake")  # type: ignore[arg-type]
    assert (config.input, str(config.output)) == ("s3://bucket/in", "s3://bucket/run")
