"""The paper's claim on the demo planet: do many layers explain better than the last one?"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from benchmarks.environment import environment
from combicam.demo.model import load
from combicam.demo.planet import CELLS, postcard
from combicam.engine.evaluation.baseline_maps import edge_baseline, random_baseline
from combicam.engine.evaluation.bootstrap import intervals
from combicam.engine.evaluation.metrics import Metrics, MetricSettings
from combicam.engine.explain.explainer import Explainer
from combicam.engine.explain.explanation import Explanation
from combicam.engine.explain.score_network import score_network
from combicam.export.spec import CamSpec
from combicam.kernels.combine import combine_reference

COMBI = "Combi-CAM (all blocks)"
SCORE_CAM = "Score-CAM, last block"
METRICS = ("pointing", "energy", "best_iou", "deletion", "insertion", "drop")
# Row -> spec; Grad-CAM's rows come from one explanation that keeps its layers.
PLUS = "combicam+"
OTHERS: dict[str, CamSpec] = {
    "Grad-CAM++, last block": CamSpec("last", "gradcam++"),
    "LayerCAM, last block": CamSpec("last", "layercam"),
    "HiResCAM, last block": CamSpec("last", "hirescam"),
    SCORE_CAM: CamSpec("last", "scorecam"),
    "LayerCAM, all blocks": CamSpec("blocks", "layercam"),
    "HiResCAM, all blocks": CamSpec("blocks", "hirescam"),
    "Grad-CAM, all blocks, gated": CamSpec(fuse="gated"),
    "LayerCAM, all blocks, gated": CamSpec("blocks", "layercam", fuse="gated"),
    PLUS: CamSpec.preset("combicam+"),
}
Columns = dict[str, dict[str, NDArray[np.float64]]]


@dataclass(frozen=True)
class ClaimConfig:
    """Pointing, energy, IoU, deletion and insertion of CAM methods, on postcards whose evidence is
    known, with bootstrap intervals and paired differences to Combi-CAM; or the like on photographs.

    Args:
        images: postcards; the network was trained on others.
        curves: the first so many are also measured by removing pixels.
        scorecam: the first so many are also explained by Score-CAM.
        layer_curves: the first so many are also measured by removing pixels for every layer alone,
            and for all layers but one; 0 leaves these rows out.
        steps: of removal.
        tolerance: of the pointing game, pixels of 160.
        batch: images at once.
        threads: of torch.
        budget: seconds after which no further batch is begun; a batch has every cell once.
        seed: of the first postcard; training used seeds below 1,000,000.
        photos: folder of photographs to measure instead of postcards, see
            benchmarks.photo_claim; ``steps`` and ``threads`` hold there, too.
        networks: that explain the photographs; default: all of benchmarks.photos.
        output: where the JSON goes; default: claim-cpu.json or claim-photos-cpu.json among the
            results.
    """

    images: int = 2016
    curves: int = 504
    scorecam: int = 252
    layer_curves: int = 144
    steps: int = 10
    tolerance: float = 8
    batch: int = 36
    threads: int = 1
    budget: float = float("inf")
    seed: int = 4_000_000
    photos: Path | None = None
    networks: tuple[str, ...] = ()
    output: Path | None = None

    def __post_init__(self) -> None:
        if self.images < 2 or self.batch < 2:
            raise ValueError(
                f"claim: expected images and batch >= 2, got {self.images} and {self.batch}"
            )


def claim(config: ClaimConfig, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure, and return the record that is written."""
    torch.set_num_threads(config.threads)
    started = time.perf_counter()
    model = load()
    cams = Explainer(model, keep_layers=True)
    others = {name: Explainer(model, **spec.to_dict()) for name, spec in OTHERS.items()}
    settings = MetricSettings(steps=config.steps, tolerance=config.tolerance, regions=0)
    scores = score_network(cams.session, by_onnxruntime=True)  # type: ignore[arg-type]
    metrics = Metrics(scores, model.preprocess, settings, batch_size=64)
    rows, right, probability, evidence = _Rows(), [], [], []
    done = 0
    for start, images, masks, cells in _postcards(config):
        if time.perf_counter() - started > config.budget and done:
            break
        x = model.preprocess.normalize(images)
        explained = cams(x)
        subject = metrics.subject(x, explained.targets[:, 0], masks)
        right.append((explained.targets[:, 0] == cells).double())
        probability.append(subject.probability.double())
        evidence.append(masks.double().mean((1, 2)))
        for name, heatmaps in _maps(config, start, x, explained, others).items():
            if _is_layer(name) and not config.layer_curves:
                continue
            wanted = config.layer_curves if _is_layer(name) else config.curves
            rows.add(name, start, metrics.measure(subject, heatmaps, removal=start < wanted))
        done = start + len(x)
        say(f"  {done} of {config.images} postcards, {time.perf_counter() - started:.0f} s")
    return {
        "env": environment(),
        "settings": {
            name: _plain(value)
            for name, value in asdict(config).items()
            if name not in ("photos", "networks", "output")
        },
        "metrics": asdict(settings),
        "images": done,
        "network": {
            "accuracy": float(torch.cat(right).mean()),
            "probability": float(torch.cat(probability).mean()),
        },
        "evidence": float(torch.cat(evidence).mean()),
        "seconds": round(time.perf_counter() - started, 1),
        "maps": summaries(rows.columns(done)),
    }


def _postcards(config: ClaimConfig) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
    """Number of the first, uint8 [B,160,160,3], bool masks [B,160,160], int64 cells [B]."""
    width, height = load().preprocess.input_size[::-1]
    for start in range(0, config.images, config.batch):
        numbers = range(start, min(start + config.batch, config.images))
        cells = [i % len(CELLS) for i in numbers]
        cards = [postcard(cell, config.seed + i) for cell, i in zip(cells, numbers, strict=True)]
        pixels, masks = (
            np.stack([np.asarray(Image.fromarray(a).resize((width, height), how)) for a in arrays])
            for arrays, how in (
                ([card.image for card in cards], Image.Resampling.BILINEAR),
                ([card.mask for card in cards], Image.Resampling.NEAREST),
            )
        )
        yield start, torch.from_numpy(pixels), torch.from_numpy(masks), torch.tensor(cells)


def _plain(value: Any) -> Any:
    """JSON has neither paths nor infinity."""
    return value if isinstance(value, int | float) and value < float("inf") else str(value)


def _is_layer(name: str) -> bool:
    return name.startswith(("only ", "without "))


def _maps(
    config: ClaimConfig,
    start: int,
    images: Tensor,
    explained: Explanation,
    others: Mapping[str, Explainer],
) -> dict[str, Tensor]:
    """Row -> heatmaps [B,H,W] of the same classes."""
    combi = explained.heatmaps[:, 0]
    layers = explained.layer_maps

    def fused(names: list[str], normalize: str = "map") -> Tensor:
        size = combi.shape[1:]
        maps = [layers[name] for name in names]
        return combine_reference(maps, size, normalize=normalize)[0][:, 0]

    names = list(layers)
    stages = list({name.partition(".")[0]: name for name in names}.values())  # the last of each
    found = {
        COMBI: combi,
        "Combi-CAM (stages)": fused(stages),
        "Combi-CAM, layers normalised": fused(names, "layer+map"),
        "Grad-CAM, last block": fused(names[-1:]),
    }
    for name, explainer in others.items():
        if name != SCORE_CAM or start < config.scorecam:
            found[name] = explainer(images, explained.targets).heatmaps[:, 0]
    found["edges"] = edge_baseline(images)
    found["random places"] = random_baseline(combi, range(start, start + len(images)))
    found["Combi-CAM of another postcard"] = combi.roll(1, 0)
    found |= {f"only {name}": fused([name]) for name in names}
    found |= {f"without {name}": fused([n for n in names if n != name]) for name in names}
    return found


class _Rows:
    """Metrics of every map, image by image; NaN where an image was not measured."""

    def __init__(self) -> None:
        self._found: dict[str, dict[str, list[tuple[int, Tensor]]]] = {}

    def add(self, name: str, start: int, metrics: Mapping[str, Tensor]) -> None:
        for metric, values in metrics.items():
            self._found.setdefault(name, {}).setdefault(metric, []).append((start, values))

    def columns(self, images: int) -> Columns:
        columns: Columns = {}
        for name, metrics in self._found.items():
            for metric, parts in metrics.items():
                column = np.full(images, np.nan)
                for start, values in parts:
                    column[start : start + len(values)] = values.numpy()
                columns.setdefault(name, {})[metric] = column
        return columns


def summaries(columns: Columns) -> dict[str, Any]:
    """Map -> metric -> mean, interval, and the paired difference to Combi-CAM."""
    keys = [(name, metric) for name in columns for metric in METRICS if metric in columns[name]]
    values = [columns[name][metric] for name, metric in keys]
    reference = columns[COMBI]
    # Combi-CAM may be measured on images that another map was not: these are no pairs.
    differences = [columns[name][metric] - reference[metric] for name, metric in keys]
    found = intervals(np.stack(values + differences, 1))
    record: dict[str, Any] = {}
    for i, (name, metric) in enumerate(keys):
        own, paired = found[i], found[i + len(keys)]
        row = asdict(own) | {"minus_combicam": asdict(paired)}
        record.setdefault(name, {})[metric] = row
    return record
