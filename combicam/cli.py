"""Multi-layer class activation maps: explain photos, write models that explain themselves."""

from __future__ import annotations

import importlib
import operator
import sys
from dataclasses import make_dataclass
from functools import reduce
from typing import Annotated, Any

import tyro

from combicam.errors import CombicamError

# name -> what it does; the module combicam/commands/NAME.py (its dashes as underscores) has its
# Config and main().
COMMANDS = {
    "run": "Explain many photos.",
    "overlay": "Explain a handful of photos, and draw the heatmaps over them.",
    "status": "How far a run is; also while it goes on.",
    "report": "A run as one page: photos under their heatmaps, places, counts.",
    "convert": "Write a run as WebDataset tars, a FiftyOne dataset, GeoParquet or GeoJSON.",
    "accuracy": "How far a run's places are from the truth.",
    "influence": "Which concepts, such as sky, a run's heatmaps lie on.",
    "evaluate": "Measure heatmaps against the network, and against two controls.",
    "export": "Write a network and its explanation as one file, or for a server.",
    "layers": "List the layers that can be explained, and which ones the rules select.",
    "doctor": "What works on this machine: backends, devices, decoders, extras.",
    "demo": "The main job on the embedded planet.",
}


def main(arguments: list[str] | None = None) -> None:
    """The entry point ``combicam``."""
    given = sys.argv[1:] if arguments is None else arguments
    name = given[0] if given and given[0] in COMMANDS else None
    config: Any = tyro.cli(
        _choice(name, everything=any(word.startswith("--tyro-") for word in given)),
        args=given,
        prog="combicam",
        description=__doc__,
        config=(tyro.conf.OmitArgPrefixes,),
    )
    try:
        _module(str(name)).main(config)
    except (CombicamError, ValueError, TypeError, FileNotFoundError) as error:
        raise SystemExit(f"combicam: error: {error}") from error
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _module(name: str) -> Any:
    return importlib.import_module(f"combicam.commands.{name.replace('-', '_')}")


def _choice(wanted: str | None, everything: bool) -> Any:
    """The union of all commands, of which only the wanted one is imported and has its options.

    Importing all of them would import torch for ``--help``. Shell completions need them all.
    """
    members = []
    for name, summary in COMMANDS.items():
        real = everything or name == wanted
        config = _module(name).Config if real else make_dataclass(name, ())
        known = tyro.conf.subcommand(name, description=None if name == wanted else summary)
        members.append(Annotated[config, known])
    return reduce(operator.or_, members)
