"""``combicam accuracy``: how far a run's places are from the truth."""

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
    """How far a run's places are from the truth; also while it goes on.

    Args:
        run: run directory.
        truth: CSV or Parquet file with the columns id, latitude and longitude; default: what the
            run was told.
        json: print JSON.
    """

    run: Annotated[tyro.conf.Positional[Path], LOCATION]
    truth: Annotated[Path | None, LOCATION] = None
    json: bool = False


def main(config: Config) -> None:
    """Print the shares within each radius, and the median."""
    found = accuracy(config.run, config.truth)
    if found is None:
        raise ValueError(
            f"accuracy: expected true places of photos in {config.run}, got none; give --truth FILE"
        )
    if config.json:
        print(json.dumps(found.to_dict()))
    else:
        print_table(found.lines())
