"""Evaluate heatmaps: explain or read back, measure, and compare with baseline maps."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
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
from combicam.engine.evaluation.grid_pointing import Candidate
from combicam.engine.evaluation.masks import read_evidence
from combicam.engine.evaluation.methods import STORED, another, contestants
from combicam.engine.evaluation.metrics import Metrics, seeds_of
from combicam.engine.evaluation.mosaics import MosaicGame, check_playable
from combicam.engine.evaluation.partial import PartialRows
from combicam.engine.evaluation.quantities import probabilities
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
from combicam.engine.explain.score_network import Network, score_network
from combicam.engine.explain.sessions import ModelSession
from combicam.engine.images.decode import DecodeConfig
from combicam.engine.inputs.masks import find_mask
from combicam.engine.pipeline.load import Loaded
from combicam.engine.run.layout import RunLayout
from combicam.engine.run.open_run import OpenRun, open_run
from combicam.engine.shards.status import NON_FINITE, OK
from combicam.engine.storage.paths import is_remote, location
from combicam.errors import DecodeError, RunError
from combicam.export.spec import CamSpec
from combicam.export.trace.scores import LABEL_SCORES

NO_CLASS = "no_class"
CHANGED = "changed"
PARTIAL = "evaluation.partial.jsonl"
_MANY_PASSES = 1000  # that repay the seconds in which ONNX Runtime is prepared


@dataclass
class _Image:
    """A decoded image, its row and its evidence."""

    row: dict[str, Any]
    sample: Sample
    pixels: NDArray[np.uint8]
    mask: NDArray[np.bool_] | None


class _Evaluator:
    """Measures batches, and fills the rows of the images in place."""

    def __init__(
        self,
        config: EvaluateConfig,
        run: OpenRun | None,
        specs: Mapping[str, CamSpec] | None,
        images: int,
    ) -> None:
        self.config = config
        self.explainer, self.made = contestants(config, run, specs)
        if config.grid:
            check_playable(config, self.made)
        self.of_labels = self.explainer.spec.score in LABEL_SCORES
        self.names = [*([STORED] if run is not None else []), *self.made]
        settings = config.metrics
        self.passes = 1  # forward passes of an image
        if config.removal:
            self.passes = 2 + settings.passes_once + settings.passes(2 * len(self.names) + 1)
        self.bar = tqdm(
            total=images * self.passes, unit="pass", desc="evaluate", disable=not config.progress
        )
        self.network = self._network(images * self.passes)
        self.metrics = Metrics(
            self._counted,
            self.explainer.preprocess,
            settings,
            self.explainer.classes,
            config.batch_size,
            self.of_labels,
        )
        self.randomised: list[RandomisedStep] = []
        self._is_checked = config.randomisation == 0
        self._finished = 0

    def _network(self, passes: int) -> Network:
        session = self.explainer.session
        if isinstance(session, ModelSession):
            return score_network(session, by_onnxruntime=passes >= _MANY_PASSES)
        return self.explainer.score_network

    def _counted(self, images: Tensor) -> Tensor:
        logits = self.network(images)
        self.bar.update(len(images))
        return logits

    def finish(self, images: int) -> None:
        """Count images as measured, whatever has been counted of their passes."""
        self._finished += images
        self.bar.update(self._finished * self.passes - self.bar.n)

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
        identities = [image.sample.entry.id for image in images]
        seeds = seeds_of(identities, self.config.seed)
        subject = self.metrics.subject(x, targets, masks, has_mask, seeds, self.config.removal)
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
            start = time.perf_counter()
            explained = explainer(x, None if targets is None else targets[:, None])
            targets = explained.targets[:, 0]
            maps[name] = explained.heatmaps[:, 0]
            if x.device.type == "cuda":
                torch.cuda.synchronize(x.device)
            seconds = (time.perf_counter() - start) / len(x)
            for image in images:
                image.row[f"{name}_explain_s"] = seconds
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
        found = probabilities(self._counted(x), self.of_labels)
        for image, row in zip(images, found, strict=True):
            known = image.sample.target
            target = int(row.argmax()) if known is None else known
            if row.isfinite().all():
                image.row |= {"target": target, "probability": float(row[target])}
            else:
                image.row |= {"status": NON_FINITE, "error": "explain: scores are not finite"}

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


def evaluate(config: EvaluateConfig, specs: Mapping[str, CamSpec] | None = None) -> Evaluation:
    """Evaluate the heatmaps of a run, or of methods on images.

    Every image has a row in ``evaluation.parquet``, failures included; means with bootstrap
    intervals are in ``evaluation.json``.

    An evaluation that was stopped goes on from its finished images and mosaics, if it is begun
    again with the same settings and output.

    Args:
        config: of the evaluation.
        specs: name -> what to compute, for maps that ``methods``, ``layers``, ``fuse`` and
            ``normalize`` cannot name; instead of these.

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
        evaluator = _Evaluator(config, run, specs, total)
        preprocess = evaluator.explainer.preprocess
        samples: Iterable[Sample] = run_samples(run, config.images, config.seed, preprocess)
    else:
        drawn = input_samples(config.input, config.images, config.seed)
        evaluator = _Evaluator(config, run, specs, len(drawn))
        samples = drawn
    made = {name: explainer.spec.to_dict() for name, explainer in evaluator.made.items()}
    settings = config.settings() | {"maps": made, "explainer": evaluator.explainer.fingerprint()}
    partial = PartialRows(output / PARTIAL, settings)
    game = MosaicGame(config, evaluator.made, partial) if config.grid else None
    earlier = len(partial.images)
    started = time.perf_counter()
    rows: list[dict[str, Any]] = []
    with ThreadPoolExecutor(config.workers) as pool, evaluator.bar:
        images = _images(config, evaluator, samples, pool, rows, partial, game)
        for batch in _batches(images, config):
            evaluator.batch(batch)
            evaluator.finish(len(batch))
            measured = [image for image in batch if image.row["status"] == OK]
            partial.add([image.row for image in measured])
            if game is not None:
                for image in measured:
                    _offer(game, image)
    mosaics = game.play() if game else []
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
        earlier,
    )
    partial.close()
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
    partial: PartialRows,
    game: MosaicGame | None,
) -> Iterator[_Image]:
    """Images that can be measured and are not yet; every sample gets a row, in order."""
    preprocess = evaluator.explainer.preprocess
    waiting: deque[dict[str, Any]] = deque()  # rows of the samples that are being loaded

    def wanted() -> Iterator[Sample]:
        for sample in samples:
            done = partial.images.get(sample.entry.id)
            rows.append(dict(done or {}))
            if done is None or (game is not None and game.fits(done["probability"])):
                waiting.append(rows[-1])
                yield sample  # a finished one may stand in a mosaic, which needs its pixels
            else:
                evaluator.finish(1)

    loaded = loaded_samples(
        wanted(), pool, 2 * config.workers, preprocess, DecodeConfig(max_pixels=config.max_pixels)
    )
    for sample, item in loaded:
        record, row = item.record, waiting.popleft()
        if row and item.pixels is not None:
            assert game is not None  # which wanted it
            _offer(game, _Image(row, sample, item.pixels, None))
            evaluator.finish(1)
            continue
        row |= {"id": sample.entry.id, "uri": sample.entry.uri, "status": record.status}
        row["error"] = record.error
        if item.pixels is None:
            evaluator.finish(1)
        elif sample.target is not None and sample.target < 0:
            row |= {
                "status": NO_CLASS,
                "error": "evaluate: the run explained a region, not a class",
            }
            evaluator.finish(1)
        elif sample.heatmap is not None and sample.heatmap.shape != item.pixels.shape[:2]:
            row |= {"status": CHANGED, "error": "evaluate: the image's size has changed"}
            evaluator.finish(1)
        else:
            yield _Image(row, sample, item.pixels, _mask(config, sample, item, row, evaluator))


def _offer(game: MosaicGame, image: _Image) -> None:
    row = image.row
    game.offer(Candidate(row["id"], row["target"], row["probability"], image.pixels))


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
