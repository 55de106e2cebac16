"""``combicam influence``: which concepts a run's heatmaps lie on."""

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
    """Which concepts, such as sky, a run's heatmaps lie on: the influence of each.

    An influence of 1 means that a concept is explained like any other part of the photos, above
    1 that the network looks at it, below that it does not.

    Args:
        run: run directory.
        masks: folder of label maps, PNG of one channel over the whole photo; of the photo a/b.jpg
            it is a/b.jpg.png or a/b.png, of x.tar::b.jpg in x.tar/.
        names: CSV with the columns label and name; several labels may have one name, others are no
            concepts.
        k: how many of a heatmap's pixels count, at the size of the model's input.
        by: column of the run whose values are groups, such as class_name; or of ``groups``.
        groups: CSV with the columns id and the one that ``by`` names, such as country.
        output: .csv or .parquet file for the whole table.

    Raises:
        ValueError: another kind of output.
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
    found = run_influence(
        config.run, config.masks, config.names, config.k, config.by, config.groups
    )
    print_table(_lines(found.rows.to_pylist()))
    print_table(
        [
            ("photos", str(found.images)),
            ("without a mask", str(found.without_mask)),
            ("constant heatmaps", str(found.flat)),
        ]
    )
    if config.output is not None:
        with new_file(config.output, "influence") as path:
            write = pa_csv.write_csv if config.output.suffix == ".csv" else pq.write_table
            write(found.rows, path)
        print_table([("table", str(config.output))])


def _lines(rows: list[dict[str, Any]]) -> Rows:
    most: dict[str, int] = {}
    for row in rows:
        most[row["group"]] = max(most.get(row["group"], 0), row["images"])
    rows = sorted(rows, key=lambda r: (-most[r["group"]], r["group"], -r["influence"]))
    lines = [
        (
            f"{row['group']}  {row['concept']}",
            f"{row['influence']:.2f}  ({row['images']} photos, {row['coverage']:.1%} of them)",
        )
        for row in rows[:_SHOWN]
    ]
    left = len(rows) - len(lines)
    return [*lines, ("…", f"{left} more rows: write them with --output")] if left else lines
