"""``combicam accuracy``: measure how far predicted locations are from the ground truth."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from combicam.commands.printing import print_table
from combicam.engine.outputs.accuracy import accuracy
from combicam.engine.storage.paths import LOCATION


@dataclass(frozen=True)
class Config:
    """Measure how far a run's predicted locations are from the ground truth, also during the run.

    Args:
        run: run directory.
        truth: CSV or Parquet file with the columns id, latitude and longitude; default: the
            ground truth that the run was given.
        json: print JSON.
    """

    run: Annotated[tyro.conf.Positional[Path], LOCATION]
    truth: Annotated[Path | None, LOCATION] = None
    json: bool = False


def main(config: Config) -> None:
    """Print the shares within each radius, and the median."""
    measured = accuracy(config.run, config.truth)
    if measured is None:
        raise ValueError(
            f"accuracy: expected ground truth in {config.run}, got none; give --truth FILE"
        )
    if config.json:
        print(json.dumps(measured.to_dict()))
    else:
        print_table(measured.lines())
