"""Evaluate heatmaps: explain or read back, measure, and compare with baseline maps."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from combicam.engine.evaluation.baseline_maps import edge_baseline, random_baseline
from combicam.engine.evaluation.config import EvaluateConfig
from combicam.engine.evaluation.grid_pointing import (
    GRID_METRICS,
    Candidate,
    assemble,
    draw_mosaics,
    grid_pointing,
    shuffled,
)
from combicam.engine.evaluation.masks import read_evidence
from combicam.engine.evaluation.methods import STORED, another, contestants
from combicam.engine.evaluation.metrics import Metrics, seeds_of
from combicam.engine.evaluation.randomisation import RandomisedStep, randomisation_check
from combicam.engine.evaluation.results import EDGES, Evaluation, write_results
from combicam.engine.evaluation.samples import (
    Sample,
    count_run_samples,
    input_samples,
    loaded_samples,
    run_samples,
)
from combicam.engine.explain.explainer import Explainer
from combicam.engine.explain.sessions import ModelSession
from combicam.engine.images.decode import DecodeConfig
from combicam.engine.inputs.masks import find_mask
from combicam.engine.pipeline.load import Loaded
from combicam.engine.run.layout import RunLayout
from combicam.engine.run.open_run import OpenRun, open_run
from combicam.engine.shards.status import NON_FINITE
from combicam.engine.storage.paths import is_remote, location
from combicam.errors import DecodeError, RunError

NO_CLASS = "no_class"
CHANGED = "changed"
_SPARE = 4  # candidates kept for each place in a mosaic: classes must differ


@dataclass
class _Image:
    """A decoded image, its row and its evidence."""

    row: dict[str, Any]
    sample: Sample
    pixels: NDArray[np.uint8]
    mask: NDArray[np.bool_] | None


class _Evaluator:
    """Measures batches, and fills the rows of the images in place."""

    def __init__(self, config: EvaluateConfig, run: OpenRun | None) -> None:
        self.config = config
        self.explainer, self.made = contestants(config, run)
        self.names = [*([STORED] if run is not None else []), *self.made]
        self.metrics = Metrics(
            self.explainer.score_network,
            self.explainer.preprocess,
            config.metrics,
            self.explainer.classes,
            config.batch_size,
        )
        self.randomised: list[RandomisedStep] = []
        self.candidates: list[Candidate] = []
        self._sized: dict[tuple[int, int], dict[str, Explainer]] = {}
        if config.grid and (config.model.is_artifact or not self.made):
            raise ValueError(
                "evaluate: expected a model and methods for grid, got an exported file, whose "
                "input size is fixed, or a run's stored heatmaps alone; give the original model "
                "and --methods"
            )
        self._is_checked = config.randomisation == 0

    def batch(self, images: list[_Image]) -> None:
        """Explain and measure images of the same size."""
        explainer = self.explainer
        pixels = torch.from_numpy(np.stack([image.pixels for image in images]))
        x = explainer.preprocess.normalize(pixels.to(explainer.device)).float()
        if not self.config.removal and self.config.masks is None:
            self._only_classify(images, x)
            return
        maps, targets = self._maps(x, images)
        if not self._is_checked:
            self._is_checked = True
            self.randomised = self._randomised(x)
        masks, has_mask = self._masks(images, x)
        subject = self.metrics.subject(x, targets, masks, has_mask)
        identities = [image.sample.entry.id for image in images]
        seeds = seeds_of(identities, self.config.seed)
        measured: dict[str, Tensor] = {"probability": subject.probability}
        entrants = {name: heatmaps for name, heatmaps in maps.items()}
        entrants |= {f"{n}_random": random_baseline(h, seeds) for n, h in maps.items()}
        entrants[EDGES] = edge_baseline(x)
        finite = torch.ones(len(images), dtype=torch.bool, device=x.device)
        for name, heatmaps in entrants.items():
            finite &= heatmaps.isfinite().flatten(1).all(1)
            for metric, values in self.metrics.measure(
                subject, heatmaps.nan_to_num(), self.config.removal
            ).items():
                measured[f"{name}_{metric}"] = values
        for name, heatmaps in maps.items():
            measured[f"{name}_flat"] = heatmaps.amax((1, 2)) == heatmaps.amin((1, 2))
        columns = {name: values.cpu().tolist() for name, values in measured.items()}
        for i, (image, good) in enumerate(zip(images, finite.tolist(), strict=True)):
            image.row["target"] = int(targets[i])
            if good:
                image.row |= {name: column[i] for name, column in columns.items()}
                self._offer(image)
            else:
                image.row |= {"status": NON_FINITE, "error": "explain: maps are not finite"}

    def _maps(self, x: Tensor, images: list[_Image]) -> tuple[dict[str, Tensor], Tensor]:
        """Name -> heatmaps [B,H,W], and the classes that they explain, [B]."""
        maps: dict[str, Tensor] = {}
        targets: Tensor | None = None
        if STORED in self.names:
            stored = np.stack([np.asarray(image.sample.heatmap) for image in images])
            maps[STORED] = torch.from_numpy(stored).to(x.device)
            targets = torch.tensor([image.sample.target for image in images], device=x.device)
        for name, explainer in self.made.items():
            explained = explainer(x, None if targets is None else targets[:, None])
            targets = explained.targets[:, 0]
            maps[name] = explained.heatmaps[:, 0]
        assert targets is not None  # there is a stored map or a computed one
        return maps, targets

    def _masks(self, images: list[_Image], x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        if self.config.masks is None:
            return None, None
        empty = np.zeros(tuple(x.shape[2:]), bool)
        masks = np.stack([empty if image.mask is None else image.mask for image in images])
        has_mask = torch.tensor([image.mask is not None for image in images], device=x.device)
        return torch.from_numpy(masks).to(x.device), has_mask

    def _only_classify(self, images: list[_Image], x: Tensor) -> None:
        """What mosaics need of single images: no maps."""
        probabilities = self.metrics.network(x).float().softmax(-1)
        for image, row in zip(images, probabilities, strict=True):
            known = image.sample.target
            target = int(row.argmax()) if known is None else known
            if row.isfinite().all():
                image.row |= {"target": target, "probability": float(row[target])}
                self._offer(image)
            else:
                image.row |= {"status": NON_FINITE, "error": "explain: scores are not finite"}

    def _offer(self, image: _Image) -> None:
        """Keep the image for the mosaics if the model is confident; not more than may be needed."""
        config, confidence = self.config, image.row["probability"]
        if not config.grid or not confidence >= config.grid_confidence:
            return
        entry, target = image.sample.entry, image.row["target"]
        self.candidates.append(Candidate(entry.id, target, confidence, image.pixels))
        needed = _SPARE * config.grid**2 * config.mosaics
        if len(self.candidates) > 2 * needed:
            self.candidates = shuffled(self.candidates, config.seed)[:needed]

    def mosaics(self) -> list[dict[str, Any]]:
        """Play the grid pointing game: a row per mosaic, with means over its cells."""
        config = self.config
        if not config.grid:
            return []
        drawn = draw_mosaics(self.candidates, config.grid, config.mosaics, config.seed)
        at_once = max(1, config.batch_size // config.grid**2)
        sizes: dict[tuple[int, ...], list[list[Candidate]]] = {}
        for mosaic in drawn:
            sizes.setdefault(mosaic[0].pixels.shape, []).append(mosaic)
        rows: list[dict[str, Any]] = []
        with tqdm(total=len(drawn), unit="mosaic", disable=not config.progress) as bar:
            for same in sizes.values():
                for start in range(0, len(same), at_once):
                    rows += self._play(same[start : start + at_once])
                    bar.update(len(rows) - bar.n)
        return rows

    def _play(self, mosaics: list[list[Candidate]]) -> list[dict[str, Any]]:
        grid, preprocess = self.config.grid, self.explainer.preprocess
        pixels = assemble(mosaics, grid).to(self.explainer.device)
        x = preprocess.normalize(pixels).float()
        targets = torch.tensor([[c.target for c in mosaic] for mosaic in mosaics], device=x.device)
        identities = [f"{c.id} {k}" for mosaic in mosaics for k, c in enumerate(mosaic)]
        seeds = seeds_of(identities, self.config.seed)
        entrants = {EDGES: edge_baseline(x)[:, None].expand(-1, grid * grid, -1, -1)}
        for name, explainer in self._at_size((x.shape[2], x.shape[3])).items():
            maps = explainer(x, targets).heatmaps.nan_to_num()
            entrants[name] = maps
            entrants[f"{name}_random"] = random_baseline(maps.flatten(0, 1), seeds).view_as(maps)
        rows: list[dict[str, Any]] = [
            {
                "images": [c.id for c in mosaic],
                "targets": [c.target for c in mosaic],
                "confidences": [c.confidence for c in mosaic],
            }
            for mosaic in mosaics
        ]
        for name, maps in entrants.items():
            for metric, values in zip(GRID_METRICS, grid_pointing(maps, grid), strict=True):
                for row, mean in zip(rows, values.nanmean(1).tolist(), strict=True):
                    row[f"{name}_{metric}"] = mean
        return rows

    def _at_size(self, size: tuple[int, int]) -> dict[str, Explainer]:
        """The methods at the size of mosaics."""
        if size not in self._sized:
            self._sized[size] = {
                name: another(explainer, explainer.spec, input_size=size)
                for name, explainer in self.made.items()
            }
        return self._sized[size]

    def _randomised(self, x: Tensor) -> list[RandomisedStep]:
        first = next(iter(self.made.values()), self.explainer)

        def explain(module: torch.nn.Module) -> Explainer:
            return another(first, first.spec, module)

        session = first.session
        if not isinstance(session, ModelSession):
            raise ValueError(
                "evaluate: expected a model for randomisation, got an exported file, whose "
                "weights are fixed; give the original model"
            )
        steps, seed = self.config.randomisation, self.config.seed
        return randomisation_check(session.module, x, explain, steps, seed)


def evaluate(config: EvaluateConfig) -> Evaluation:
    """Evaluate the heatmaps of a run, or of methods on images.

    Every image has a row in ``evaluation.parquet``, failures included; means with bootstrap
    intervals are in ``evaluation.json``.

    Args:
        config: of the evaluation.

    Raises:
        ValueError: no images, or invalid arguments.
        RunError: no image can be measured; the files have the reasons.
        CombicamError, FileNotFoundError: see :func:`~combicam.make_explainer`; a run of another
            model.
    """
    where = location(config.input)
    run = open_run(where) if RunLayout(where).fingerprint.exists() else None
    beside = run is not None and not is_remote(where)
    output = config.output or (where if beside else Path("evaluation"))
    if run is not None:
        total = count_run_samples(run, config.images)
        evaluator = _Evaluator(config, run)
        preprocess = evaluator.explainer.preprocess
        samples: Iterable[Sample] = run_samples(run, config.images, config.seed, preprocess)
    else:
        samples = input_samples(config.input, config.images, config.seed)
        total = len(samples)
        evaluator = _Evaluator(config, run)
    started = time.perf_counter()
    rows: list[dict[str, Any]] = []
    with ThreadPoolExecutor(config.workers) as pool:
        for batch in _batches(_images(config, evaluator, samples, pool, rows, total), config):
            evaluator.batch(batch)
    mosaics = evaluator.mosaics()
    seconds = time.perf_counter() - started
    evaluation = write_results(
        config,
        output,
        rows,
        evaluator.names,
        evaluator.explainer,
        evaluator.randomised,
        mosaics,
        seconds,
    )
    if not evaluation.summary["images"]:
        first = next((row["error"] for row in rows), "none is explained")
        raise RunError(
            f"evaluate: expected at least one image that can be measured, got {len(rows)} that "
            f"cannot (the first: {first}); see {evaluation.rows}"
        )
    return evaluation


def _images(
    config: EvaluateConfig,
    evaluator: _Evaluator,
    samples: Iterable[Sample],
    pool: ThreadPoolExecutor,
    rows: list[dict[str, Any]],
    total: int,
) -> Iterator[_Image]:
    """Images that can be measured; every sample gets a row."""
    preprocess = evaluator.explainer.preprocess
    loaded = loaded_samples(
        samples, pool, 2 * config.workers, preprocess, DecodeConfig(max_pixels=config.max_pixels)
    )
    for sample, item in tqdm(loaded, total=total, unit="image", disable=not config.progress):
        record = item.record
        row = {"id": sample.entry.id, "uri": sample.entry.uri, "status": record.status}
        row["error"] = record.error
        rows.append(row)
        if item.pixels is None:
            continue
        if sample.target is not None and sample.target < 0:
            row |= {
                "status": NO_CLASS,
                "error": "evaluate: the run explained a region, not a class",
            }
            continue
        if sample.heatmap is not None and sample.heatmap.shape != item.pixels.shape[:2]:
            row |= {"status": CHANGED, "error": "evaluate: the image's size has changed"}
            continue
        yield _Image(row, sample, item.pixels, _mask(config, sample, item, row, evaluator))


def _mask(
    config: EvaluateConfig,
    sample: Sample,
    item: Loaded,
    row: dict[str, Any],
    evaluator: _Evaluator,
) -> NDArray[np.bool_] | None:
    """Read the evidence; an unreadable mask is noted in the row, other metrics are measured."""
    if config.masks is None:
        return None
    path = find_mask(config.masks, sample.entry.id)
    if path is None:
        row["mask"] = False
        return None
    photo = (item.record.width or 0, item.record.height or 0)
    try:
        mask = read_evidence(path, photo, evaluator.explainer.preprocess)
    except DecodeError as error:
        row["error"] = str(error)
        return None
    row["mask"] = True
    return mask


def _batches(images: Iterable[_Image], config: EvaluateConfig) -> Iterator[list[_Image]]:
    """Lists of images of the same size."""
    waiting: dict[tuple[int, ...], list[_Image]] = {}
    for image in images:
        batch = waiting.setdefault(image.pixels.shape, [])
        batch.append(image)
        if len(batch) == config.batch_size:
            yield waiting.pop(image.pixels.shape)
    yield from waiting.values()
