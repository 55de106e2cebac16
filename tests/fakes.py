"""A tiny explainer, folders of photos, runs over them; also in processes that are killed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from combicam.engine.explain.explanation import Explanation
from combicam.engine.run.config import RunConfig
from combicam.export.classes.classes import ClassTable
from combicam.export.preprocess import Preprocess
from combicam.export.spec import CamSpec
from combicam.export.trace.probe import LayerInfo


class FakeExplainer:
    """Explains by brightness; every image on its own. A photo of one colour 77 gives NaN."""

    def __init__(self, targets: int = 1, classes: ClassTable | None = None, **spec: str) -> None:
        self.spec = CamSpec(targets=targets, **spec)
        self.preprocess = Preprocess((24, 32), resize="squash")
        self.classes = classes
        self.device = torch.device("cpu")
        self.weights = "abc"
        self.batch_sizes: list[int] = []
        self.layers: tuple[LayerInfo, ...] = ()
        self.keeps_layers = False

    def layers_at(self, size: tuple[int, int]) -> tuple[LayerInfo, ...]:
        return self.layers

    def fingerprint(self) -> dict[str, str]:
        return {"weights": self.weights, "spec": self.spec.to_json()}

    def __call__(self, images: Tensor, /) -> Explanation:
        self.batch_sizes.append(len(images))
        k = self.spec.targets
        maps = images.float().mean(-1)
        low, high = maps.amin((1, 2)), maps.amax((1, 2))
        flat = high == low
        heat = (maps - low[:, None, None]) / (high - low).clamp(min=1)[:, None, None]
        logits = torch.nn.functional.one_hot((maps.mean((1, 2)).long() % 5), 5).float()
        scores, targets = logits.softmax(-1).topk(k)
        scores[(images == 77).flatten(1).all(1)] = torch.nan
        return Explanation(
            heatmaps=heat[:, None].expand(-1, k, -1, -1),
            targets=targets,
            scores=scores,
            logits=logits,
            ranges=torch.stack([low, high], -1)[:, None].expand(-1, k, -1),
            flat=flat[:, None].expand(-1, k),
        )


def save_photos(folder: Path, count: int, size: tuple[int, int] = (40, 30)) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    paths = []
    for i in range(count):
        coarse = rng.integers(0, 256, (5, 4, 3), dtype=np.uint8)
        paths.append(folder / f"p{i:03d}.jpg")
        Image.fromarray(coarse).resize(size).save(paths[-1])
    return paths


SMALL: dict[str, Any] = {"batch_size": 4, "workers": 2, "shard_size": 8, "progress": False}


def configured(folder: Path, source: str = "in", output: Any = "run", **changes: Any) -> RunConfig:
    """A small run of FOLDER/in into FOLDER/run."""
    values: dict[str, Any] = {"input": str(folder / source), "output": folder / output}
    return RunConfig(**{**values, "model": "fake", **SMALL, **changes})


def shard_bytes(run: Any) -> dict[str, bytes]:
    """Name -> content of the committed shards."""
    return {p.name: p.read_bytes() for p in sorted((run / "shards").glob("*.parquet"))}


def wait_for(condition: Any, seconds: float = 60.0) -> Any:
    """What a condition returns once it is true."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found


def start_run(
    folder: Path,
    *,
    output: Any = None,
    committed: int = 0,
    pause: float = 0.15,
    step: str | None = None,
    **options: Any,
) -> subprocess.Popen[bytes]:
    """Run FOLDER/in into FOLDER/run in a process of its own.

    Args:
        folder: of both.
        output: another run directory.
        committed: how many shards must be there before this returns.
        pause: seconds that a batch takes.
        step: of ``slow_run.STEPS``, where it kills itself.
        options: of the configuration.
    """
    run = folder / "run" if output is None else output
    arguments = {
        "source": str(folder / "in"),
        "output": str(run),
        "pause": pause,
        "step": step,
        "options": SMALL | options,
    }
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("slow_run.py")), json.dumps(arguments)],
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    wait_for(lambda: len(shard_bytes(run)) >= committed or process.poll() is not None)
    assert step is not None or process.poll() is None, process.communicate()[1].decode()
    return process
