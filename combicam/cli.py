"""Multi-layer class activation maps: explain images, write models that explain themselves."""

from __future__ import annotations

import importlib
import operator
import sys
from dataclasses import make_dataclass
from functools import reduce
from typing import Annotated, Any

import tyro

from combicam.allocator import tune_allocator
from combicam.console import console
from combicam.cores import fit_threads
from combicam.errors import CombicamError

# name -> summary; combicam/commands/NAME.py (dashes as underscores) defines its Config and main().
COMMANDS = {
    "run": "Explain any number of images into a run directory.",
    "overlay": "Explain a few images and draw the heatmaps over them.",
    "status": "Show the progress of a run, finished or not.",
    "report": "Write a run as one HTML page: images with heatmaps, locations, counts.",
    "convert": "Write a run as WebDataset tars, a FiftyOne dataset, GeoParquet or GeoJSON.",
    "accuracy": "Measure how far a run's predicted locations are from the ground truth.",
    "influence": "Measure how strongly a run's heatmaps highlight concepts, such as sky.",
    "evaluate": "Evaluate heatmaps against the model, and compare them with baseline maps.",
    "recommend": "Find the method and layers that suit a model, on some of your images.",
    "export": "Export a model and its explanation as one file, for a server, or as a web site.",
    "check": "Say what an ONNX file has that a runtime lacks, or runs slowly.",
    "layers": "List the layers that can be explained, and which ones the rules select.",
    "doctor": "Test what works on this machine: backends, devices, decoders, extras.",
    "demo": "Run the whole workflow on the built-in demo planet, or on photographs.",
}


@console()
def main(arguments: list[str] | None = None) -> None:
    """Entry point of the ``combicam`` command."""
    fit_threads()  # before torch is imported
    given = sys.argv[1:] if arguments is None else arguments
    name = given[0] if given and given[0] in COMMANDS else None
    config: Any = tyro.cli(
        _choice(name, everything=any(word.startswith("--tyro-") for word in given)),
        args=given,
        prog="combicam",
        description=__doc__,
        config=(tyro.conf.OmitArgPrefixes,),
    )
    tune_allocator()
    try:
        _module(str(name)).main(config)
    except (CombicamError, ValueError, TypeError, FileNotFoundError) as error:
        raise SystemExit(f"combicam: error: {error}") from error
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _module(name: str) -> Any:
    return importlib.import_module(f"combicam.commands.{name.replace('-', '_')}")


def _choice(wanted: str | None, everything: bool) -> Any:
    """The union of all commands; only the wanted one is imported, with its options.

    Importing all of them would import torch for ``--help``. Shell completions need them all.
    """
    members = []
    for name, summary in COMMANDS.items():
        real = everything or name == wanted
        config = _module(name).Config if real else make_dataclass(name, ())
        known = tyro.conf.subcommand(name, description=None if name == wanted else summary)
        members.append(Annotated[config, known])
    return reduce(operator.or_, members)
