"""``combicam influence``: measure how strongly heatmaps highlight concepts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import tyro

from combicam.commands.printing import Rows, print_table
from combicam.engine.outputs.concept_influence import TOP_PIXELS
from combicam.engine.outputs.run_concept_influence import run_influence
from combicam.engine.storage.new_file import new_file
from combicam.engine.storage.paths import LOCATION

_SHOWN = 20


@dataclass(frozen=True)
class Config:
    """Measure how strongly a run's heatmaps highlight each concept, such as sky.

    An influence of 1 means that a concept is highlighted like any other part of the images, above
    1 that the model favours it, below 1 that it neglects it.

    Args:
        run: run directory.
        masks: folder of label maps, single-channel PNGs that cover the whole image: for a/b.jpg,
            a/b.jpg.png or a/b.png; for x.tar::b.jpg, the same in x.tar/.
        names: CSV with the columns label and name; several labels may share a name, and labels
            without one are ignored.
        k: how many of a heatmap's pixels count, at the size of the model's input.
        by: column that groups the rows, such as class_name; of the run, or of ``groups``.
        groups: CSV with the columns id and ``by``, such as country.
        output: .csv or .parquet file for the whole table.

    Raises:
        ValueError: an output that is neither .csv nor .parquet.
    """

    run: Annotated[tyro.conf.Positional[Path], LOCATION]
    masks: tyro.conf.Positional[Path]
    names: Path
    k: Annotated[int, tyro.conf.arg(aliases=["-k"])] = TOP_PIXELS
    by: str | None = None
    groups: Path | None = None
    output: Annotated[Path | None, LOCATION, tyro.conf.arg(aliases=["-o"])] = None

    def __post_init__(self) -> None:
        if self.output is not None and self.output.suffix not in (".csv", ".parquet"):
            raise ValueError(f"influence: expected output as .csv or .parquet, got {self.output}")


def main(config: Config) -> None:
    """Print the table, largest groups and influences first, and write it."""
    influence = run_influence(
        config.run, config.masks, config.names, config.k, config.by, config.groups
    )
    print_table(_lines(influence.rows.to_pylist()))
    print_table(
        [
            ("images", str(influence.images)),
            ("without a mask", str(influence.without_mask)),
            ("constant heatmaps", str(influence.flat)),
        ]
    )
    if config.output is not None:
        with new_file(config.output, "influence") as path:
            write = pa_csv.write_csv if config.output.suffix == ".csv" else pq.write_table
            write(influence.rows, path)
        print_table([("table", str(config.output))])


def _lines(rows: list[dict[str, Any]]) -> Rows:
    most: dict[str, int] = {}
    for row in rows:
        most[row["group"]] = max(most.get(row["group"], 0), row["images"])
    rows = sorted(rows, key=lambda r: (-most[r["group"]], r["group"], -r["influence"]))
    lines = [
        (
            f"{row['group']}  {row['concept']}",
            f"{row['influence']:.2f}  ({row['images']} images, {row['coverage']:.1%} of the area)",
        )
        for row in rows[:_SHOWN]
    ]
    left = len(rows) - len(lines)
    return [*lines, ("…", f"{left} more rows: write them with --output")] if left else lines
