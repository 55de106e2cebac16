"""Write an evaluation's results: a row per image, means with intervals, and a table."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from combicam.engine.evaluation.bootstrap import Interval, intervals
from combicam.engine.evaluation.config import EvaluateConfig
from combicam.engine.evaluation.grid_pointing import GRID_METRICS
from combicam.engine.evaluation.metrics import METRICS
from combicam.engine.evaluation.randomisation import RandomisedStep
from combicam.engine.explain.explainer import Explainer
from combicam.engine.shards.status import OK
from combicam.engine.storage.atomic import write_json
from combicam.engine.storage.new_file import new_file
from combicam.version import __version__

EDGES = "edges"
DIRECTIONS = METRICS | GRID_METRICS
_LEADING = ("id", "uri", "status", "error", "target", "mask", "probability")


@dataclass(frozen=True)
class Evaluation:
    """Results of :func:`~combicam.evaluate`.

    Attributes:
        rows: path of evaluation.parquet, a row per image.
        record: path of evaluation.json.
        summary: its contents: settings, images, and the means of each map and the baseline maps.
    """

    rows: Path
    record: Path
    summary: dict[str, Any]

    def lines(self) -> list[str]:
        """The lines of the tables that the command prints."""
        lines = []
        for name, metrics in self.summary["maps"].items():
            cells: list[tuple[str, ...]] = [(name, "map", "random places", "edges")]
            for metric, means in metrics.items():
                arrow = "↑" if DIRECTIONS[metric] else "↓"
                kinds = (means["map"], means["random"], means["edges"])
                cells.append((f"{metric} {arrow}", *map(_words, kinds)))
            widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
            for row in cells:
                words = (word.ljust(width) for word, width in zip(row, widths, strict=True))
                lines.append(("  " + "  ".join(words)).rstrip())
            lines.append("")
        for step in self.summary["randomisation"]:
            layers = "1 layer" if step["layers"] == 1 else f"{step['layers']} layers"
            value = step["correlation"]
            text = "none, the maps are constant" if value is None else f"{value:.2f}"
            lines.append(f"  {layers} randomised, down to {step['layer']}: rank correlation {text}")
        return lines


def write_results(
    config: EvaluateConfig,
    output: Path,
    rows: list[dict[str, Any]],
    names: Sequence[str],
    explainer: Explainer,
    randomised: Sequence[RandomisedStep],
    mosaics: Sequence[dict[str, Any]],
    seconds: float,
    earlier: int = 0,
) -> Evaluation:
    """Write both files into ``output``, atomically.

    Args:
        config: of the evaluation.
        output: folder, created if missing.
        rows: of all images.
        names: of the maps.
        explainer: of the model.
        randomised: steps of the randomisation check.
        mosaics: rows of the grid pointing game.
        seconds: that the evaluation took.
        earlier: images that an earlier, stopped evaluation has measured.
    """
    output.mkdir(parents=True, exist_ok=True)
    path = output / "evaluation.parquet"
    columns = [name for name in _LEADING if any(name in row for row in rows)]
    columns += [key for row in rows for key in row if key not in columns]
    columns = list(dict.fromkeys(columns))
    table = pa.table({name: [row.get(name) for row in rows] for name in columns})
    with new_file(path, "evaluate") as temporary:
        pq.write_table(table, temporary, compression="zstd")
    measured = [row for row in rows if row["status"] == OK]
    failures = Counter(row["status"] for row in rows if row["status"] != OK)
    maps = _maps(measured, names) if measured else {}
    if config.grid:
        played = [name for name in names if mosaics and f"{name}_grid_energy" in mosaics[0]]
        for name, metrics in _maps(mosaics, played).items():
            maps.setdefault(name, {}).update(metrics)
    summary: dict[str, Any] = {
        "combicam": __version__,
        "model": explainer.description.model,
        "weights": explainer.description.weights,
        "settings": config.settings(),
        "images": len(measured),
        "failures": dict(sorted(failures.items())),
        "with_mask": sum(bool(row.get("mask")) for row in measured),
        "flat": {name: sum(bool(row.get(f"{name}_flat")) for row in measured) for name in names},
        "seconds": round(seconds, 3),
        "explain_s": {
            name: float(np.median([row[f"{name}_explain_s"] for row in measured]))
            for name in names
            if measured and f"{name}_explain_s" in measured[0]
        },
        "images_per_s": round((len(measured) - earlier) / seconds, 6),
        "maps": maps,
        "randomisation": [_step(step) for step in randomised],
    }
    if config.grid:
        summary["mosaics"] = [{key: _known(value) for key, value in row.items()} for row in mosaics]
    record = output / "evaluation.json"
    write_json(record, summary)
    return Evaluation(path, record, summary)


def _maps(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """Map -> metric -> means of it, of the baseline maps and of the first map, and differences."""
    keys = [(name, m) for name in names for m in DIRECTIONS if f"{name}_{m}" in rows[0]]
    if not keys:
        return {}
    columns, places = [], []
    for name, metric in keys:
        own = _column(rows, f"{name}_{metric}")
        others = {"random": f"{name}_random_{metric}", "edges": f"{EDGES}_{metric}"}
        if name != names[0]:
            others[names[0]] = f"{names[0]}_{metric}"
        columns.append(own)
        places.append((name, metric, "map"))
        for kind, column in others.items():
            other = _column(rows, column)
            columns += [other, own - other]
            places += [(name, metric, kind), (name, metric, f"minus_{kind}")]
    means: dict[str, Any] = {}
    for (name, metric, kind), interval in zip(places, intervals(np.stack(columns, 1)), strict=True):
        means.setdefault(name, {}).setdefault(metric, {})[kind] = _plain(interval)
    return means


def _column(rows: Sequence[dict[str, Any]], name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array([row[name] for row in rows], np.float64)


def _plain(interval: Interval) -> dict[str, Any]:
    return {k: _known(v) for k, v in asdict(interval).items()}


def _known(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, list):
        return [_known(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _step(step: RandomisedStep) -> dict[str, Any]:
    values = step.correlations.cpu().numpy()
    known = values[~np.isnan(values)]
    return {
        "layer": step.layer,
        "layers": step.layers,
        "correlation": float(known.mean()) if len(known) else None,
        "images": len(known),
    }


def _words(value: dict[str, Any]) -> str:
    if value["mean"] is None:
        return "–"
    digits = 0 if abs(value["mean"]) >= 100 else 3
    mean, low, high = (f"{value[key]:.{digits}f}" for key in ("mean", "low", "high"))
    return f"{mean} ({low}–{high})"
