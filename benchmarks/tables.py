"""Tables and plots of docs, from the committed records: figures cannot drift."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import claim_page, scaling_page
from benchmarks.coverage import markdown
from benchmarks.decoders import decode_table
from benchmarks.geo import geo_table
from benchmarks.harness import Result
from benchmarks.kernels import head_table
from benchmarks.peers import peers_table
from benchmarks.pipeline_page import growth_table, stages_table, stores_table
from benchmarks.traffic import traffic_table

Record = dict[str, Any]
View = Callable[[Record], str]

START, END = "<!-- table:", "<!-- /table -->"
BLOCK = re.compile(
    rf"(?P<start>{START} (?P<view>[\w-]+) of (?P<record>[\w.-]+) -->)(?P<old>.*?){END}", re.DOTALL
)
FLOORS = ("forward, ONNX Runtime", "forward, compiled")
# What the record of a case does not hold: the network's name, its size, how many layers it has.
NETWORKS = {
    "resnet50": "ResNet-50, 224², 4 layers (`stages`)",
    "efficientnet_b4": "EfficientNet-B4, 300², 32 layers (`blocks`)",
}
# Versions under a table: those that decide its figures.
EVERYWHERE = ("torch", "triton", "onnxruntime-gpu", "onnxruntime")
PEERS = ("grad-cam", "torchcam", "captum")
DECODERS = ("pillow", "simplejpeg", "torchvision", "torchcodec", "opencv-python-headless")
PACKAGES = {"graph": PEERS, "peers": PEERS, "decode": DECODERS}


@dataclass(frozen=True)
class TablesConfig:
    """Write what is between ``<!-- table: VIEW of RECORD -->`` and ``<!-- /table -->`` again.

    Args:
        pages: Markdown files.
        results: folder of the records.
        plots: draw the plots, too, and write docs/coverage.md.
    """

    pages: tuple[Path, ...] = (Path("docs/performance.md"), Path("docs/faithfulness.md"))
    results: Path = Path("benchmarks/results")
    plots: bool = True


def graph_table(rows: list[Result]) -> str:
    """A table a network: images per second, and time per image beside the forward's.

    Returns:
        Markdown; a row that failed says why.
    """
    return _by_case(rows, _graph)


def _graph(rows: list[Result]) -> str:
    floor = next((row for row in rows if row.name in FLOORS and row.images_per_s), None)
    beside = f"time / {floor.name}" if floor else ""
    lines = [f"| | images/s | {beside} |", "|---|---|---|"]
    for row in rows:
        if row.images_per_s is None:
            lines.append(f"| {row.name} | failed: {row.error} | |")
            continue
        ratio = f"{floor.images_per_s / row.images_per_s:.1f}" if floor else ""  # type: ignore[operator]
        lines.append(f"| {row.name} | {row.images_per_s:.2f} | {ratio} |")
    return "\n".join(lines)


def _by_case(rows: list[Result], view: Callable[[list[Result]], str], *others: str) -> str:
    """A table for every case; other parameters that tell cases apart stand in its title."""
    cases: dict[str, list[Result]] = {}
    for row in rows:
        name = NETWORKS.get(row.params["case"], row.params["case"])
        title = ", ".join([name, *(f"{other} {row.params[other]}" for other in others)])
        cases.setdefault(title, []).append(row)
    return "\n\n".join(f"**{title}**\n\n{view(mine)}" for title, mine in cases.items())


def _of_rows(view: Callable[[list[Result]], str]) -> View:
    return lambda record: view([Result(**case) for case in record["cases"]])


VIEWS: dict[str, View] = {
    "graph": _of_rows(graph_table),
    "peers": _of_rows(lambda rows: _by_case(rows, peers_table)),
    "kernels": _of_rows(lambda rows: _by_case(rows, head_table, "batch")),
    "stages": _of_rows(stages_table),
    "growth": _of_rows(growth_table),
    "stores": _of_rows(stores_table),
    "decode": _of_rows(decode_table),
    "geo": _of_rows(geo_table),
    "scaling": _of_rows(scaling_page.scaling_table),
    "traffic": traffic_table,
    "claim": claim_page.claim_table,
    "photos": claim_page.photo_table,
    "designs": claim_page.designs_table,
}
# Plots are not compared: their bytes depend on matplotlib's version.
PLOTS: dict[str, tuple[str, Callable[[Record, Path], None]]] = {
    "docs/faithfulness.png": ("claim-cpu.json", claim_page.draw),
    "docs/scaling.png": ("scaling-cpu.json", scaling_page.draw),
}


def provenance(env: dict[str, Any], packages: tuple[str, ...] = ()) -> str:
    """The line under a table: device, versions of these packages too, commit."""
    device = env["gpu"] or f"{env['cores']} cores of {env['cpu']}"
    versions = env["versions"]
    shown = [f"{name} {versions[name]}" for name in (*EVERYWHERE, *packages) if name in versions]
    commit = f"commit {env['commit']}{' and changes to it' if env['dirty'] else ''}"
    return f"<sub>{'; '.join([device, ', '.join(shown), commit])}</sub>"


def rendered(page: str, results: Path, name: str) -> str:
    """The page with its tables written again; all outside the markers is as it was.

    Args:
        page: Markdown with pairs of markers.
        results: folder of the records.
        name: of the page, for errors.

    Raises:
        ValueError: markers that are no pairs, an unknown view, a record that does not exist.
    """
    blocks = list(BLOCK.finditer(page))
    starts, ends = page.count(START), page.count(END)
    if not starts == ends == len(blocks) or any(START in block["old"] for block in blocks):
        raise ValueError(
            f"tables: expected pairs of '{START} VIEW of RECORD -->' and '{END}' in {name}, got "
            f"{starts} and {ends}, {len(blocks)} of them pairs; put the markers around each table"
        )
    return BLOCK.sub(
        lambda m: f"{m['start']}\n{_table(m['view'], results / m['record'], name)}\n{END}", page
    )


def _table(view: str, record: Path, page: str) -> str:
    if view not in VIEWS:
        raise ValueError(f"tables: expected a view of {sorted(VIEWS)} in {page}, got {view!r}")
    if not record.exists():
        raise ValueError(
            f"tables: expected the record {record} that {page} names, got no such file; measure it "
            "or take the markers out"
        )
    found = _read(record)
    return f"{VIEWS[view](found)}\n\n{provenance(found['env'], PACKAGES.get(view, ()))}"


def _read(record: Path) -> Record:
    found: Record = json.loads(record.read_text(encoding="utf-8"))
    return found


def tables(config: TablesConfig) -> None:
    """Write every page; all are checked before the first is written. Then draw the plots."""
    written = {
        page: rendered(page.read_text(encoding="utf-8"), config.results, str(page))
        for page in config.pages
    }
    if config.plots:
        written[Path("docs/coverage.md")] = markdown(_read(config.results / "coverage.json"))
    for page, text in written.items():
        page.write_text(text, encoding="utf-8")
        print(f"written: {page}", flush=True)
    for name, (record, draw) in PLOTS.items() if config.plots else ():
        draw(_read(config.results / record), Path(name))
        print(f"drawn: {name}", flush=True)
