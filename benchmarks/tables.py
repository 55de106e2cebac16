"""Tables of README and docs, written from the committed records, so that figures cannot drift."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

START, END = "<!-- table -->", "<!-- /table -->"
BASELINE = "forward, ONNX Runtime"
# What the record of a case does not hold: the network's name, and how many layers it has.
NETWORKS = {
    ("resnet50", "stages"): ("ResNet-50", 4),
    ("efficientnet_b4", "blocks"): ("EfficientNet-B4", 32),
}


@dataclass(frozen=True)
class TablesConfig:
    """Write the tables between ``<!-- table -->`` and ``<!-- /table -->`` again.

    Args:
        record: what ``python -m benchmarks graph`` wrote.
        pages: Markdown files with one pair of markers each.
    """

    record: Path = Path("benchmarks/results/graph-cpu.json")
    pages: tuple[Path, ...] = (Path("README.md"), Path("docs/performance.md"))


def graph_tables(record: dict[str, Any]) -> str:
    """A table a network: images per second, and time per image beside the forward's.

    Args:
        record: ``{env, cases}`` of ``python -m benchmarks graph``.

    Returns:
        Markdown; a row that failed says why.
    """
    networks: dict[str, list[dict[str, Any]]] = {}
    for row in record["cases"]:
        networks.setdefault(row["params"]["case"], []).append(row)
    return "\n\n".join(_network(rows) for rows in networks.values())


def _network(rows: list[dict[str, Any]]) -> str:
    params = rows[0]["params"]
    model, layers, (height, width) = params["model"], params["layers"], params["size"]
    name, count = NETWORKS.get((model, layers), (model, None))
    size = f"{height}²" if height == width else f"{height} × {width}"
    which = f"{count} layers (`{layers}`)" if count else f"`{layers}`"
    lines = [
        f"**{name}, {size}, {which}**",
        "",
        "| | images/s | time / forward in ONNX Runtime |",
        "|---|---|---|",
    ]
    base = next((row["images_per_s"] for row in rows if row["name"] == BASELINE), None)
    for row in rows:
        speed = row["images_per_s"]
        if speed is None:
            lines.append(f"| {row['name']} | failed: {row['error']} | |")
            continue
        ratio = f"{base / speed:.1f}" if base else ""
        lines.append(f"| {row['name']} | {speed:.2f} | {ratio} |")
    return "\n".join(lines)


def between_markers(page: str, table: str, name: str) -> str:
    """The page with its table replaced.

    Args:
        page: Markdown with one pair of markers.
        table: what belongs between them.
        name: of the page, for the error.

    Returns:
        The page; all outside the markers is as it was.

    Raises:
        ValueError: there is not exactly one pair of markers, in order.
    """
    before, start, rest = page.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end) or START in rest or END in before + after:
        raise ValueError(
            f"tables: expected one {START} and then one {END} in {name}, got "
            f"{page.count(START)} and {page.count(END)}; put the markers around the table"
        )
    return f"{before}{START}\n{table}\n{END}{after}"


def tables(config: TablesConfig) -> None:
    """Write every page; all are checked before the first is written."""
    table = graph_tables(json.loads(config.record.read_text()))
    written = {page: between_markers(page.read_text(), table, str(page)) for page in config.pages}
    for page, text in written.items():
        page.write_text(text)
        print(f"written: {page}", flush=True)
