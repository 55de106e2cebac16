"""Summarise a run for its report: counts, speed, predictions, locations, accuracy."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from combicam.engine.report.selection import Chosen
from combicam.engine.report.thumbnails import RunFacts
from combicam.engine.run.layout import RunLayout
from combicam.engine.run.open_run import OpenRun
from combicam.engine.run.status import RunStatus
from combicam.engine.shards.status import OK

_BINS = 20
_ANSWERS = 12
# More circles cannot be told apart.
_PLACES = 4000
# Radii of street, city, region, country and continent, as in the literature.
_RADII_KM = (1, 25, 200, 750, 2500)
_RESIZED = {
    "squash": "squeezed",
    "crop": "cropped",
    "short-side": "shorter side",
    "cover": "five crops",
}
_SPEC = ("method", "layers", "score", "fuse", "normalize", "align_corners", "targets")


def tell(
    run: OpenRun,
    status: RunStatus,
    facts: RunFacts,
    chosen: Chosen,
    cards: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """The summary; JSON-ready.

    Args:
        run: of the report.
        status: of the run.
        facts: its run.json.
        chosen: the matching rows.
        cards: of the shown rows.
    """
    table = chosen.matching
    ok = table.filter(pc.equal(table.column("status"), OK))
    summary: dict[str, Any] = {
        "state": status.state,
        "images": status.images,
        "committed": chosen.committed,
        "matching": table.num_rows,
        "filtered": chosen.filtered,
        "statuses": dict(Counter(table.column("status").to_pylist()).most_common()),
        "speed": _speed(run.layout, status),
        "made": _made(run, facts),
        "scores": _histogram(ok.column("score")),
        "answers": _answers(ok),
        "names": _names(run, ok, cards),
        "spec": run.spec.to_dict() | {"targets": run.maps.targets},
        "asked": facts.values.get("explain") or [],
    }
    if {"lat", "lon"} <= set(ok.column_names):
        summary["places"] = _places(ok)
    if "error_km" in ok.column_names:
        summary["accuracy"] = _accuracy(ok.column("error_km"))
    return summary


def _speed(run: RunLayout, status: RunStatus) -> dict[str, Any]:
    """Speed of a finished run from its summary; of a running one from its heartbeat."""
    speed: dict[str, Any] = {
        "images_per_s": status.images_per_s,
        "bottleneck": status.bottleneck,
        "remaining_s": status.remaining_s,
        "stages": {},
    }
    if status.state == "finished" and run.summary.exists():
        summary = json.loads(run.summary.read_text(encoding="utf-8"))
        speed |= {"images_per_s": summary["images_per_s"], "bottleneck": summary["bottleneck"]}
        speed |= {"wall_s": summary["wall_s"], "new_images": summary["new_images"]}
        speed["stages"] = {
            name: [stage["busy"], stage["waiting"]] for name, stage in summary["stages"].items()
        }
    return speed


def _made(run: OpenRun, facts: RunFacts) -> list[list[str]]:
    """The settings of the run, as names and values."""
    explainer = facts.values.get("explainer", {})
    spec = run.spec.to_dict()
    rows = [["model", str(explainer.get("model", "not told"))]]
    rows += [[name.replace("_", " "), _words(spec[name])] for name in _SPEC]
    if facts.values.get("explain"):
        rows.append(["explained", ", ".join(facts.values["explain"])])
    preprocess = facts.preprocess
    if preprocess is not None:
        height, width = preprocess.input_size
        resized = f"{_RESIZED[preprocess.resize]}, {preprocess.interpolation}"
        rows.append(
            [
                "input",
                f"{width} × {height} px{', grey' if preprocess.channels == 1 else ''}, {resized}",
            ]
        )
    if explainer.get("layers"):
        rows.append(["layer names", explainer["layers"]])
    rows.append(["maps kept", facts.values.get("store", "full")])
    for name in ("dtype", "weights", "combicam"):
        if explainer.get(name):
            rows.append([name, str(explainer[name])[:16] if name == "weights" else explainer[name]])
    return rows


def _words(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _histogram(scores: Any) -> dict[str, Any]:
    values = scores.drop_null().to_numpy()
    values = values[np.isfinite(values)]
    # Scores are probabilities, whichever score was differentiated.
    counts, _ = np.histogram(values, _BINS, (0.0, 1.0))
    median = float(np.median(values)) if len(values) else None
    return {"counts": counts.tolist(), "median": median}


def _answers(ok: Any) -> list[dict[str, Any]]:
    """The most frequent predictions, with their counts and mean probabilities."""
    grouped = ok.group_by("answer").aggregate([("probability", "mean"), ("answer", "count")])
    best = grouped.sort_by([("answer_count", "descending"), ("answer", "ascending")])
    return [
        {"target": row["answer"], "count": row["answer_count"], "score": row["probability_mean"]}
        for row in best.slice(0, _ANSWERS).to_pylist()
    ]


def _names(run: OpenRun, ok: Any, cards: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Names of the classes on the page."""
    if run.classes is None or not run.classes.names:
        return {}
    shown = set(ok.column("answer").unique().to_pylist())
    for card in cards:
        shown.update(card.get("targets", ()))
        shown.update(place["class"] for place in card.get("places", ()))
    return {str(index): run.classes.name(index) for index in sorted(shown) if index >= 0}


def _places(ok: Any) -> dict[str, Any]:
    """Predicted locations, the most frequent first: [latitude, longitude, rows, name]."""
    placed = ok.filter(pc.and_(ok.column("lat").is_valid(), ok.column("lon").is_valid()))
    if "class_name" not in placed.column_names:
        placed = placed.append_column("class_name", pa.nulls(placed.num_rows, pa.string()))
    wanted = [("class_name", "min"), ([], "count_all")]
    grouped = placed.group_by(["lat", "lon"]).aggregate(wanted)
    order = [("count_all", "descending"), ("lat", "ascending"), ("lon", "ascending")]
    best = grouped.sort_by(order)
    shown = best.slice(0, _PLACES).to_pylist()
    return {
        "points": [[p["lat"], p["lon"], p["count_all"], p["class_name_min"]] for p in shown],
        "all": best.num_rows,
    }


def _accuracy(errors: Any) -> dict[str, Any]:
    values = errors.drop_null().to_numpy()
    within = [[radius, int((values <= radius).sum())] for radius in _RADII_KM]
    median = float(np.median(values)) if len(values) else None
    return {"rows": len(values), "within": within, "median_km": median}
