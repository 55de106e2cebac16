"""Play the grid pointing game with several explainers on mosaics of images."""

from __future__ import annotations

from typing import Any

import torch
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
from combicam.engine.evaluation.methods import another
from combicam.engine.evaluation.metrics import seeds_of
from combicam.engine.evaluation.partial import PartialRows
from combicam.engine.evaluation.quantities import probabilities
from combicam.engine.evaluation.results import EDGES
from combicam.engine.explain.explainer import Explainer
from combicam.export.trace.scores import LABEL_SCORES

_SPARE = 4  # candidates kept for each place in a mosaic: classes must differ


def check_playable(config: EvaluateConfig, explainers: dict[str, Explainer]) -> None:
    """Check that maps of mosaics can be computed, before anything is measured or written.

    Raises:
        ValueError: an exported file, or no explainers.
    """
    if config.model.is_artifact or not explainers:
        raise ValueError(
            "evaluate: expected a model and methods for grid, got an exported file, whose "
            "input size is fixed, or a run's stored heatmaps alone; give the original model "
            "and --methods"
        )


class MosaicGame:
    """Collects images that the model is sure of, and measures maps on mosaics of them.

    Args:
        config: of the evaluation.
        explainers: name -> explainer of single images.
        partial: finished mosaics.
    """

    def __init__(
        self, config: EvaluateConfig, explainers: dict[str, Explainer], partial: PartialRows
    ) -> None:
        self._config = config
        self._explainers = explainers
        self._partial = partial
        self._candidates: list[Candidate] = []
        self._sized: dict[tuple[int, int], dict[str, Explainer]] = {}

    def fits(self, confidence: float) -> bool:
        """Whether the model is sure enough of an image."""
        return confidence >= self._config.grid_confidence

    def offer(self, candidate: Candidate) -> None:
        """Keep the image if the model is sure of it; no more images than may be needed."""
        config = self._config
        if not self.fits(candidate.confidence):
            return
        self._candidates.append(candidate)
        needed = _SPARE * config.grid**2 * config.mosaics
        if len(self._candidates) > 2 * needed:
            self._candidates = shuffled(self._candidates, config.seed)[:needed]

    def play(self) -> list[dict[str, Any]]:
        """A row per mosaic: means over its cells, and the values of each cell."""
        config = self._config
        drawn = draw_mosaics(self._candidates, config.grid, config.mosaics, config.seed)
        at_once = max(1, config.batch_size // config.grid**2)
        sizes: dict[tuple[int, ...], list[list[Candidate]]] = {}
        done = self._partial.mosaics
        for mosaic in drawn:
            if _key(mosaic) not in done:
                sizes.setdefault(mosaic[0].pixels.shape, []).append(mosaic)
        waiting = sum(map(len, sizes.values()))
        with tqdm(
            total=len(drawn),
            initial=len(drawn) - waiting,
            unit="mosaic",
            desc="mosaics",
            disable=not config.progress,
        ) as bar:
            for same in sizes.values():
                for start in range(0, len(same), at_once):
                    rows = self._play(same[start : start + at_once])
                    self._partial.add(rows)
                    bar.update(len(rows))
        return [done[_key(mosaic)] for mosaic in drawn]

    def _play(self, mosaics: list[list[Candidate]]) -> list[dict[str, Any]]:
        grid = self._config.grid
        first = next(iter(self._explainers.values()))
        pixels = assemble(mosaics, grid).to(first.device)
        x = first.preprocess.normalize(pixels).float()
        targets = torch.tensor([[c.target for c in mosaic] for mosaic in mosaics], device=x.device)
        identities = [f"{c.id} {k}" for mosaic in mosaics for k, c in enumerate(mosaic)]
        seeds = seeds_of(identities, self._config.seed)
        entrants = {EDGES: edge_baseline(x)[:, None].expand(-1, grid * grid, -1, -1)}
        logits = None
        for name, explainer in self._at_size((x.shape[2], x.shape[3])).items():
            explained = explainer(x, targets)
            logits = explained.logits
            maps = explained.heatmaps.nan_to_num()
            entrants[name] = maps
            entrants[f"{name}_random"] = random_baseline(maps.flatten(0, 1), seeds).view_as(maps)
        assert logits is not None  # there are explainers
        of_labels = first.spec.score in LABEL_SCORES
        among = probabilities(logits, of_labels).gather(1, targets).tolist()
        rows: list[dict[str, Any]] = [
            {
                "images": [c.id for c in mosaic],
                "targets": [c.target for c in mosaic],
                "confidences": [c.confidence for c in mosaic],
                "confidences_in_mosaic": shares,
            }
            for mosaic, shares in zip(mosaics, among, strict=True)
        ]
        for name, maps in entrants.items():
            for metric, values in zip(GRID_METRICS, grid_pointing(maps, grid), strict=True):
                for row, cells in zip(rows, values, strict=True):
                    row[f"{name}_{metric}"] = float(cells.nanmean())
                    row[f"{name}_{metric}_cells"] = cells.tolist()
        return rows

    def _at_size(self, size: tuple[int, int]) -> dict[str, Explainer]:
        """The explainers at the size of mosaics."""
        if size not in self._sized:
            self._sized[size] = {
                name: another(explainer, explainer.spec, input_size=size)
                for name, explainer in self._explainers.items()
            }
        return self._sized[size]


def _key(mosaic: list[Candidate]) -> tuple[str, ...]:
    return tuple(candidate.id for candidate in mosaic)
