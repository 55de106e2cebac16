"""The record of scaling as tables and as a plot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.graph import BASELINE
from benchmarks.harness import Result
from benchmarks.libraries import AUTHORS
from benchmarks.networks import NAMES
from benchmarks.scaling import AXES, EAGER, LATE

_TITLES = {
    "batch": "images per call",
    "layers": "layers explained, deepest first",
    "size": "side of the images, pixels",
    "targets": "classes explained per image",
}
# Okabe and Ito's colours, which most colour-blind people tell apart; floors are grey.
_STYLES: dict[str, dict[str, Any]] = {
    EAGER: {"color": "#9a9a9a", "linestyle": "--", "marker": "o"},
    BASELINE: {"color": "#4d4d4d", "linestyle": "--", "marker": "s"},
    AUTHORS: {"color": "#cc79a7", "marker": "v"},
    "combicam, eager": {"color": "#56b4e9", "marker": "o"},
    "combicam, onnxruntime": {"color": "#d55e00", "marker": "s"},
    "combicam, compile": {"color": "#009e73", "marker": "D"},
    "combicam, aoti": {"color": "#e69f00", "marker": "^"},
}


def scaling_table(rows: list[Result]) -> str:
    """Markdown: a table an axis, images a second and in brackets MiB, a column a contender."""
    return "\n\n".join(
        _axis_table(axis, [row for row in rows if row.params["axis"] == axis])
        for axis in dict.fromkeys(row.params["axis"] for row in rows)
    )


def _axis_table(axis: str, rows: list[Result]) -> str:
    names = list(dict.fromkeys(row.name for row in rows if row.images_per_s is not None))
    lines = [f"| {_TITLES[axis]} | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for value in dict.fromkeys(row.params["value"] for row in rows):
        here = {row.name: row for row in rows if row.params["value"] == value}
        cells = [_cell(here.get(name, here.get(LATE))) for name in names]
        lines.append(f"| {value} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(row: Result | None) -> str:
    if row is None:
        return ""
    if row.images_per_s is None:
        return (row.error or "").partition(":")[0]
    return f"{row.images_per_s:.2f} ({row.params['peak_mib']:.0f} MiB)"


def series(rows: list[Result], axis: str) -> dict[str, np.ndarray]:
    """What is drawn: name -> float64 [n,3] of value, images a second, MiB, values ascending."""
    found: dict[str, list[tuple[float, float, float]]] = {}
    for row in rows:
        if row.params["axis"] == axis and row.images_per_s is not None:
            point = (row.params["value"], row.images_per_s, row.params["peak_mib"])
            found.setdefault(row.name, []).append(point)
    return {name: np.array(sorted(values)) for name, values in found.items()}


def draw(record: dict[str, Any], path: Path) -> None:
    """Log-log: a column an axis, images a second above, memory below, the floor dashed."""
    from matplotlib.figure import Figure

    rows = [Result(**case) for case in record["cases"]]
    axes = [axis for axis in AXES if series(rows, axis)]
    figure = Figure(figsize=(3.6 * len(axes), 6.6), layout="constrained")
    panels = figure.subplots(2, len(axes), squeeze=False)
    shown: dict[str, Any] = {}
    for column, axis in enumerate(axes):
        for name, points in series(rows, axis).items():
            style = {"linewidth": 1.8, "markersize": 4.5, **_STYLES.get(name, {})}
            for row, value in enumerate((points[:, 1], np.maximum(points[:, 2], 1))):
                (line,) = panels[row, column].plot(points[:, 0], value, label=name, **style)
            shown[name] = line
        if floor := [p for n, p in series(rows, axis).items() if n in (EAGER, BASELINE)]:
            fastest = max(floor, key=lambda points: points[0, 1])
            (line,) = panels[0, column].plot(fastest[:, 0], fastest[:, 1] / 2, ":", color="#4d4d4d")
            shown["half of the fastest forward: a backward costs as much"] = line
        case = next(row.params for row in rows if row.params["axis"] == axis)
        panels[0, column].set_title(_caption(axis, case), fontsize=9)
        _label(
            panels[:, column],
            axis,
            sorted({r.params["value"] for r in rows if r.params["axis"] == axis}),
        )
    panels[0, 0].set_ylabel("images per second")
    panels[1, 0].set_ylabel("peak memory of a call, MiB")
    figure.legend(shown.values(), shown.keys(), loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(path, dpi=110)


def _caption(axis: str, params: dict[str, Any]) -> str:
    parts = [NAMES.get(params["case"], params["case"])]
    if axis != "size":
        parts.append(f"{params['size'][0]}²")
    if axis != "batch":
        parts.append(f"batch {params['batch']}")
    return ", ".join(parts)


def _label(panels: Any, axis: str, values: list[int]) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    for panel in panels:
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_xticks(values, [str(value) for value in values])
        panel.set_xticks([], minor=True)
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_formatter(NullFormatter())
        panel.grid(color="#e4e4e4", which="both", linewidth=0.6)
        panel.set_axisbelow(True)
        panel.tick_params(labelsize=8)
        for side in ("top", "right"):
            panel.spines[side].set_visible(False)
    panels[1].set_xlabel(_TITLES[axis])
