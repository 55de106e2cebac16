"""The claim's record as a table and a plot."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.claim import COMBI

SHOWN = {
    "pointing": "pointing ↑",
    "energy": "energy ↑",
    "best_iou": "best IoU ↑",
    "deletion": "deletion ↓",
    "insertion": "insertion ↑",
}
BASELINE_MAPS = ("edges", "random places", "Combi-CAM of another postcard")
_MUTED, _PLAIN, _STRONG = "#9a9a9a", "#31688e", "#c1440e"


def claim_table(record: dict[str, Any]) -> str:
    """Markdown: the methods, the baseline maps, then every layer alone and left out."""
    maps = record["maps"]
    methods = [
        n for n in maps if not n.startswith(("only ", "without ")) and n not in BASELINE_MAPS
    ]
    layers = [name for name in maps if name.startswith(("only ", "without "))]
    settings, metrics = record["settings"], record["metrics"]
    images = {name: _images(maps[name]) for name in (*methods, *layers)}
    fewer = "; ".join(f"{n}: {images[n][0]}" for n in methods if images[n][0] < record["images"])
    removed = images[COMBI][1]
    caption = (
        f"{record['images']:,} postcards, seeds from {settings['seed']:,} on; "
        f"{'all' if removed == record['images'] else f'of these {removed:,}'} "
        f"for deletion and insertion ({metrics['steps']} steps, baseline "
        f"{metrics['baseline']}, {metrics['rule']} rule){'; ' + fewer if fewer else ''}. "
        f"Pointing tolerance {metrics['tolerance']:g} px of 160. The planted evidence covers "
        f"{record['evidence']:.1%} of a postcard on average. The model predicts "
        f"the right class of {record['network']['accuracy']:.1%} of the postcards. After each mean "
        "its 95 % bootstrap interval; **bold**: better than Combi-CAM of all blocks, "
        "*slanted*: worse, by a paired interval without 0."
    )
    parts = [caption, _table("map", methods, maps), _table("baseline map", BASELINE_MAPS, maps)]
    if layers:
        parts += [
            f"Layers, deletion and insertion on {images[layers[0]][1]:,} postcards:",
            _table("Grad-CAM", layers, maps),
        ]
    return "\n\n".join(parts)


PHOTO_SHOWN = {
    "grid_energy": "grid energy ↑",
    "grid_maximum": "maximum ↑",
    "deletion": "deletion ↓",
    "insertion": "insertion ↑",
    "sensitivity": "sensitivity ↑",
}


def photo_table(record: dict[str, Any]) -> str:
    """Markdown: a table for each network."""
    parts = []
    for network, found in record["networks"].items():
        fastest = min(found["explain_s"].values())
        caption = (
            f"**EfficientNet-{network.capitalize()}**, {found['images']} photographs, "
            f"{found['mosaics']} mosaics; intervals and marks as above; time of an explanation "
            "relative to the fastest."
        )
        head = f"| map | {' | '.join(PHOTO_SHOWN.values())} | time |"
        lines = [head, "|---" * (len(PHOTO_SHOWN) + 2) + "|"]
        for name, metrics in found["maps"].items():
            cells = [_cell(metric, metrics.get(metric)) for metric in PHOTO_SHOWN]
            cost = found["explain_s"].get(name)
            cells.append(f"{cost / fastest:.1f}" if cost else "")
            lines.append(f"| {name} | {' | '.join(cells)} |")
        parts += [caption, "\n".join(lines)]
    return "\n\n".join(parts)


_BOTH = {
    "postcards": ("pointing", "energy", "best_iou", "deletion", "insertion"),
    "photographs": ("grid_energy", "deletion", "insertion"),
}
_SHOWN_DESIGNS = 12


def designs_table(record: dict[str, Any]) -> str:
    """Markdown: the designs with the best mean rank over both worlds, and the two references."""
    worlds = record["worlds"]
    photographs = next(name for name in worlds if name != "postcards")
    source = {"postcards": worlds["postcards"], "photographs": worlds[photographs]}
    columns = [(world, metric) for world, metrics in _BOTH.items() for metric in metrics]
    names = [name for name in source["postcards"] if name in source["photographs"]]
    names.remove("edges")
    values = {
        (world, metric): {name: source[world][name][metric]["mean"] for name in names}
        for world, metric in columns
    }
    places = {
        key: sorted(names, key=lambda name: found[name] * (1 if key[1] == "deletion" else -1))
        for key, found in values.items()
    }
    rank = {
        world: {
            name: sum(places[world, m].index(name) for m in metrics) / len(metrics) + 1
            for name in names
        }
        for world, metrics in _BOTH.items()
    }
    mean = {name: (rank["postcards"][name] + rank["photographs"][name]) / 2 for name in names}
    best = sorted(names, key=mean.__getitem__)
    known = [
        name
        for name in ("gradcam last sum", "gradcam blocks sum")
        if name not in best[:_SHOWN_DESIGNS]
    ]
    heads = [f"{metric.replace('_', ' ')}" for _, metric in columns]
    settings = record["settings"]
    lines = [
        f"{len(names)} designs on {settings['postcards']} postcards (first five columns), and on "
        f"{settings['images']} photographs and {settings['mosaics']} mosaics by "
        f"EfficientNet-{photographs.capitalize()}: the {_SHOWN_DESIGNS} of the best mean rank, "
        "both worlds counting alike.",
        "",
        f"| method, layers, fusion | {' | '.join(heads)} | mean rank |",
        "|---" * (len(heads) + 2) + "|",
    ]
    for name in (*best[:_SHOWN_DESIGNS], *known):
        cells = [f"{values[key][name]:.3f}" for key in columns]
        lines.append(f"| {name} | {' | '.join(cells)} | {mean[name]:.1f} |")
    return "\n".join(lines)


def _images(metrics: dict[str, Any]) -> tuple[int, int]:
    """How many postcards were looked at, and how many had pixels removed."""
    return metrics["pointing"]["images"], metrics.get("deletion", {"images": 0})["images"]


def _table(title: str, names: Iterable[str], maps: dict[str, Any]) -> str:
    lines = [f"| {title} | {' | '.join(SHOWN.values())} |", "|---" * (len(SHOWN) + 1) + "|"]
    for name in names:
        cells = [_cell(metric, maps[name].get(metric)) for metric in SHOWN]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(metric: str, found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    paired = found["minus_combicam"]
    sign = -1 if metric == "deletion" else 1
    mark = ""
    if sign * paired["mean"] > 0 and paired["low"] * paired["high"] > 0:
        mark = "**"
    elif paired["low"] * paired["high"] > 0:
        mark = "*"
    return f"{mark}{found['mean']:.3f}{mark} ({found['low']:.3f}–{found['high']:.3f})"


def draw(record: dict[str, Any], path: Path) -> None:
    """Means with intervals: methods and baseline maps above, layers alone and left out below."""
    from matplotlib.figure import Figure

    maps = record["maps"]
    upper = [n for n in maps if not n.startswith(("only ", "without "))]
    lower = [n for n in maps if n.startswith(("only ", "without "))]
    rows = [names for names in (upper, lower) if names]
    shown = ("pointing", "energy", "deletion", "insertion")
    figure = Figure(figsize=(11, 1.2 + 0.24 * (len(upper) + len(lower))), layout="constrained")
    heights = [len(names) for names in rows]
    axes = figure.subplots(
        len(rows), len(shown), squeeze=False, gridspec_kw={"height_ratios": heights}
    )
    for names, line in zip(rows, axes, strict=True):
        for metric, axis in zip(shown, line, strict=True):
            _panel(axis, [(name, maps[name].get(metric)) for name in names], metric)
        for axis in line[1:]:
            axis.set_yticklabels([])
    figure.savefig(path, dpi=110)


def _panel(axis: Any, entries: list[tuple[str, Any]], metric: str) -> None:
    for y, (name, found) in enumerate(entries):
        if found is None:
            continue
        colour = (
            _MUTED if name in BASELINE_MAPS else _STRONG if name.startswith("Combi") else _PLAIN
        )
        axis.plot([found["low"], found["high"]], [y, y], color=colour, linewidth=2)
        axis.plot(found["mean"], y, "o", color=colour, markersize=4)
    axis.set_yticks(range(len(entries)), [name for name, _ in entries], fontsize=8)
    axis.set_ylim(len(entries) - 0.5, -0.5)
    axis.set_title(
        SHOWN[metric].replace("↑", "(more is better)").replace("↓", "(less is better)"), fontsize=9
    )
    axis.tick_params(axis="x", labelsize=8)
    axis.grid(axis="x", color="#e4e4e4")
    axis.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
