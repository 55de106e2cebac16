"""Many layers against the last one on photographs: the half that no design was chosen on."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from benchmarks.environment import environment
from benchmarks.photos import NETWORKS, half_of
from combicam.engine.evaluation.bootstrap import intervals
from combicam.engine.evaluation.config import EvaluateConfig
from combicam.engine.evaluation.evaluate import evaluate
from combicam.engine.evaluation.methods import word
from combicam.engine.evaluation.metrics import MetricSettings
from combicam.engine.evaluation.results import Evaluation
from combicam.export.models.models import ModelConfig
from combicam.export.spec import CamSpec

COMBI, LAST = "Combi-CAM (all blocks)", "Grad-CAM, last block"
SPECS: Mapping[str, CamSpec] = {
    COMBI: CamSpec(),
    LAST: CamSpec("last"),
    "Grad-CAM++, last block": CamSpec("last", "gradcam++"),
    "LayerCAM, last block": CamSpec("last", "layercam"),
    "Grad-CAM, stages": CamSpec("stages"),
    "Combi-CAM, layers normalised": CamSpec(normalize="layer+map"),
    "LayerCAM, all blocks": CamSpec("blocks", "layercam"),
    "Grad-CAM, stages, gated": CamSpec("stages", fuse="gated"),
    "combicam+": CamSpec.preset("combicam+"),
}
METRICS = ("grid_energy", "grid_maximum", "deletion", "insertion", "sensitivity")
CONFIDENCE = 0.5  # of a photograph in a mosaic: fewer than half of them reach 0.9


@dataclass(frozen=True)
class PhotoClaimConfig:
    """Grid pointing, deletion, insertion and sensitivity-n of CAM methods on photographs, by
    networks trained on ImageNet.

    Args:
        photos: folder of photographs; the half that ``designs`` does not use is measured.
        networks: of combicam.demo.photo_models.
        images: photographs from which pixels are removed, at most; mosaics are of all.
        steps: of removal.
        threads: of torch.
    """

    photos: Path
    networks: tuple[str, ...] = tuple(NETWORKS)
    images: int = 48
    steps: int = 10
    threads: int = 2


def photo_claim(
    config: PhotoClaimConfig, say: Callable[[str], None], specs: Mapping[str, CamSpec] = SPECS
) -> dict[str, Any]:
    """Measure, and return the record that is written."""
    torch.set_num_threads(config.threads)
    started = time.perf_counter()
    found: dict[str, Any] = {}
    for network in config.networks:
        found[network] = _measured(config, network, specs)
        say(f"  {network}, {time.perf_counter() - started:.0f} s")
    return {
        "env": environment(),
        "settings": {k: v for k, v in asdict(config).items() if not isinstance(v, Path)},
        "seconds": round(time.perf_counter() - started, 1),
        "networks": found,
    }


def _measured(
    config: PhotoClaimConfig, network: str, specs: Mapping[str, CamSpec]
) -> dict[str, Any]:
    files = half_of(config.photos, "report")
    rows, evaluation = _evaluated(network, files[: config.images], specs, config.steps, grid=0)
    _, played = _evaluated(network, files, specs, config.steps, grid=2)
    mosaics = played.summary["mosaics"]
    return {
        "images": len(rows),
        "mosaics": len(mosaics),
        "explain_s": {name: evaluation.summary["explain_s"][word(name)] for name in specs},
        "maps": _summary(rows, mosaics, specs),
    }


def _evaluated(
    network: str, files: list[Path], specs: Mapping[str, CamSpec], steps: int, grid: int
) -> tuple[list[dict[str, Any]], Evaluation]:
    """Removal from the files, or mosaics of them: measured rows, and everything."""
    with tempfile.TemporaryDirectory() as folder:
        chosen = Path(folder, "photos.txt")
        chosen.write_text("\n".join(str(path.resolve()) for path in files) + "\n")
        evaluation = evaluate(
            EvaluateConfig(
                str(chosen),
                ModelConfig(f"combicam.demo.photo_models:{network}"),
                Path(folder, "evaluation"),
                metrics=MetricSettings(steps=steps),
                grid=grid,
                grid_confidence=CONFIDENCE,
                removal=not grid,
                batch_size=8,
            ),
            specs,
        )
        rows = [r for r in pq.read_table(evaluation.rows).to_pylist() if r["status"] == "ok"]
    return rows, evaluation


def _summary(
    rows: list[dict[str, Any]], mosaics: list[dict[str, Any]], specs: Mapping[str, CamSpec]
) -> dict[str, Any]:
    """Map -> metric -> mean, interval, paired differences to Combi-CAM and to the last block."""
    names = {name: word(name) for name in specs}
    names |= {"edges": "edges", "random places": f"{word(COMBI)}_random"}
    record: dict[str, Any] = {}
    for metric in METRICS:
        source = mosaics if metric.startswith("grid") else rows
        if not source:
            continue
        columns: dict[str, NDArray[np.float64]] = {
            name: np.array([row[f"{column}_{metric}"] for row in source], np.float64)
            for name, column in names.items()
        }
        for name, values in columns.items():
            kinds = [values, values - columns[COMBI], values - columns[LAST]]
            own, minus, last = intervals(np.stack(kinds, 1))
            record.setdefault(name, {})[metric] = asdict(own) | {
                "minus_combicam": asdict(minus),
                "minus_last": asdict(last),
            }
    return record
