"""Recommend method, layers and fusion for a model, by measuring them on some of its images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow.parquet as pq
import tyro
from numpy.typing import NDArray
from scipy.stats import rankdata

from combicam.cores import usable_cores
from combicam.engine.evaluation.bootstrap import intervals
from combicam.engine.evaluation.config import EvaluateConfig
from combicam.engine.evaluation.evaluate import evaluate
from combicam.engine.evaluation.methods import word
from combicam.engine.evaluation.metrics import MetricSettings
from combicam.engine.evaluation.results import DIRECTIONS, Evaluation
from combicam.engine.explain.config import ComputeConfig
from combicam.engine.storage.atomic import write_json
from combicam.export.models.models import ModelConfig
from combicam.export.spec import CamSpec

# What is tried, the usual choice first.
CANDIDATES: Mapping[str, CamSpec] = {
    "combicam": CamSpec(),
    "combicam+": CamSpec.preset("combicam+"),
    "gradcam last": CamSpec("last"),
    "gradcam++ last": CamSpec("last", "gradcam++"),
    "layercam last": CamSpec("last", "layercam"),
    "gradcam stages": CamSpec("stages"),
    "gradcam stages gated": CamSpec("stages", fuse="gated"),
    "gradcam blocks gated": CamSpec("blocks", fuse="gated"),
    "layercam stages": CamSpec("stages", "layercam"),
    "layercam blocks": CamSpec("blocks", "layercam"),
    "layercam blocks gated": CamSpec("blocks", "layercam", fuse="gated"),
}
METRICS = ("grid_energy", "deletion", "insertion")
# Metric -> name -> values of all images or mosaics.
Columns = Mapping[str, Mapping[str, NDArray[np.float64]]]


@dataclass(frozen=True)
class RecommendConfig:
    """Try methods, layers and fusions on some images, rank them, and write the best as a file that
    ``run``, ``overlay`` and ``export`` take with ``--spec``.

    Args:
        input: images, as for ``run``.
        model: which model; not an exported file, whose method is fixed.
        output: folder for spec.json, recommend.json and the evaluation's files.
        images: size of a random sample of the images.
        grid: side of the mosaics of the grid pointing game; a mosaic needs the memory of an image
            so many times larger.
        grid_confidence: least probability of the best class of an image in a mosaic.
        mosaics: how many at most.
        steps: in which pixels are removed.
        compute: device, precision and backend.
        batch_size: images per batch.
        workers: threads that read and decode.
        seed: of the sample.
        progress: show a progress bar on stderr.
    """

    input: tyro.conf.Positional[str]
    model: ModelConfig
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("recommend")
    images: int = 32
    grid: int = 2
    grid_confidence: float = 0.7
    mosaics: int = 16
    steps: int = 10
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    batch_size: Annotated[int, tyro.conf.arg(aliases=["-b"])] = 8
    workers: int = field(default_factory=usable_cores)
    seed: int = 0
    progress: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.model, str):
            object.__setattr__(self, "model", ModelConfig(self.model))
        if self.model.is_artifact:
            raise ValueError(
                f"recommend: expected a model, got {self.model.model}, a file with one fixed "
                "method; give the original model"
            )


@dataclass(frozen=True)
class Ranked:
    """A candidate and what was measured of it.

    Attributes:
        name: of the candidate.
        spec: what it computes.
        means: metric -> mean, low and high end of the 95 % interval, and number of images.
        rank: mean of its ranks by each metric; 1 is best.
        undecided: the metrics by which it is not worse than the best: the paired interval of the
            difference has 0 in it, or it is better.
        cost: time of an explanation, relative to the fastest candidate.
    """

    name: str
    spec: CamSpec
    means: dict[str, dict[str, Any]]
    rank: float
    undecided: tuple[str, ...]
    cost: float


@dataclass(frozen=True)
class Recommendation:
    """Results of :func:`recommend`.

    Attributes:
        ranked: the candidates, best first.
        controls: name -> means of maps that do not depend on the model: edges of the image, and
            the best candidate's map at random places.
        spec_file: JSON of the best one.
        evaluation: all figures.
    """

    ranked: list[Ranked]
    controls: dict[str, dict[str, dict[str, Any]]]
    spec_file: Path
    evaluation: Evaluation

    @property
    def ties(self) -> list[str]:
        """The candidates that no metric tells from the best one."""
        measured = set(self.ranked[0].means)
        return [r.name for r in self.ranked[1:] if set(r.undecided) == measured]

    def lines(self) -> list[str]:
        """The table that the command prints, and what it says."""
        metrics = list(self.ranked[0].means)
        head = [f"{m.replace('_', ' ')} {'↑' if DIRECTIONS[m] else '↓'}" for m in metrics]
        cells = [("", *head, "rank", "time")]
        for one in self.ranked:
            values = [_words(one.means[m], m in one.undecided) for m in metrics]
            cells.append((one.name, *values, f"{one.rank:.1f}", f"{one.cost:.1f}"))
        for name, means in self.controls.items():
            cells.append((name, *(_words(means[m], False) for m in metrics), "", ""))
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            "  " + "  ".join(w.ljust(n) for w, n in zip(row, widths, strict=True)).rstrip()
            for row in cells
        ]
        best = self.ranked[0].name
        lines += ["", "  =: not worse than the first, by a paired 95 % interval"]
        if "grid_energy" not in metrics:
            lines.append("  no mosaics: too few images of different classes with that confidence")
        if self.ties:
            lines.append(f"  these images do not tell {best} from {', '.join(self.ties)}")
        else:
            lines.append(f"  {best} is ahead of every other by at least one metric")
        return lines


def recommend(
    config: RecommendConfig, candidates: Mapping[str, CamSpec] | None = None
) -> Recommendation:
    """Measure candidates on a sample of the images, rank them, and write the best as spec.json.

    The rank is the mean of the ranks by grid pointing energy, deletion and insertion: energy
    rewards sharp maps, the other two look at the order of pixels only, so none decides alone.

    Args:
        config: of the recommendation.
        candidates: name -> spec; default: ``CANDIDATES``.

    Raises:
        ValueError, RunError, CombicamError: see :func:`~combicam.evaluate`.
    """
    candidates = candidates or CANDIDATES
    evaluation = evaluate(
        EvaluateConfig(
            config.input,
            config.model,
            config.output,
            metrics=MetricSettings(steps=config.steps, regions=0),
            compute=config.compute,
            images=config.images,
            grid=config.grid,
            grid_confidence=config.grid_confidence,
            mosaics=config.mosaics,
            batch_size=config.batch_size,
            workers=config.workers,
            seed=config.seed,
            progress=config.progress,
        ),
        candidates,
    )
    seconds = {name: evaluation.summary["explain_s"][word(name)] for name in candidates}
    costs = {name: value / min(seconds.values()) for name, value in seconds.items()}
    ranked = rank(candidates, _columns(evaluation, candidates), costs)
    best = evaluation.summary["maps"][word(ranked[0].name)]
    controls = {
        "edges": {m: best[m]["edges"] for m in ranked[0].means},
        "the first at random places": {m: best[m]["random"] for m in ranked[0].means},
    }
    spec_file = config.output / "spec.json"
    write_json(spec_file, ranked[0].spec.to_dict())
    record = [
        {
            "name": one.name,
            "spec": one.spec.to_dict(),
            "rank": one.rank,
            "undecided": list(one.undecided),
            "cost": one.cost,
            "means": one.means,
        }
        for one in ranked
    ]
    write_json(config.output / "recommend.json", {"ranked": record, "controls": controls})
    return Recommendation(ranked, controls, spec_file, evaluation)


def rank(
    candidates: Mapping[str, CamSpec], columns: Columns, costs: Mapping[str, float]
) -> list[Ranked]:
    """Order candidates by the mean of their ranks.

    Args:
        candidates: name -> spec.
        columns: metric -> name -> float64 [N], the values of all images or mosaics.
        costs: name -> relative time.
    """
    names = list(candidates)
    means = {
        metric: dict(zip(names, intervals(np.stack([values[n] for n in names], 1)), strict=True))
        for metric, values in columns.items()
    }
    places: dict[str, list[float]] = {name: [] for name in names}
    for metric, found in means.items():
        sign = -1 if DIRECTIONS[metric] else 1
        for name, place in zip(
            names, rankdata([sign * found[name].mean for name in names]), strict=True
        ):
            places[name].append(float(place))
    order = sorted(names, key=lambda name: (np.mean(places[name]), costs[name]))
    undecided: dict[str, list[str]] = {name: [] for name in names}
    for metric, values in columns.items():
        sign = 1 if DIRECTIONS[metric] else -1
        behind = np.stack([sign * (values[order[0]] - values[name]) for name in names], 1)
        for name, interval in zip(names, intervals(behind), strict=True):
            if interval.low <= 0:
                undecided[name].append(metric)
    return [
        Ranked(
            name,
            candidates[name],
            {metric: asdict(found[name]) for metric, found in means.items()},
            float(np.mean(places[name])),
            tuple(undecided[name]),
            costs[name],
        )
        for name in order
    ]


def _columns(evaluation: Evaluation, candidates: Mapping[str, CamSpec]) -> Columns:
    images = pq.read_table(evaluation.rows).to_pylist()
    sources = {"deletion": images, "insertion": images}
    if evaluation.summary["mosaics"]:
        sources["grid_energy"] = evaluation.summary["mosaics"]
    return {
        metric: {
            name: np.array([row.get(f"{word(name)}_{metric}") for row in rows], np.float64)
            for name in candidates
        }
        for metric in METRICS
        if (rows := sources.get(metric))
    }


def _words(value: Mapping[str, Any], is_undecided: bool) -> str:
    mark = " =" if is_undecided else ""
    return f"{value['mean']:.3f} ({value['low']:.3f}–{value['high']:.3f}){mark}"
