"""List a run's inputs, and compare them with those it was started with."""

from __future__ import annotations

from collections.abc import Iterator

from combicam.engine.inputs.entry import Entry
from combicam.engine.inputs.ground_truth import read_truth, with_truth
from combicam.engine.inputs.listing import list_inputs
from combicam.engine.inputs.manifest import Manifest
from combicam.engine.inputs.selection import Tally
from combicam.engine.run.config import RunConfig
from combicam.engine.run.log import log
from combicam.engine.storage.paths import names_store
from combicam.errors import RunError, first_line

_LISTED_AGAIN = 200_000  # images at most: listing more takes long


def run_inputs(config: RunConfig, tally: Tally | None = None) -> Iterator[Entry]:
    """Every input of a run in a fixed order, with its ground truth if known.

    Args:
        config: of the run.
        tally: counts what is left out.

    Raises:
        ValueError, FileNotFoundError: see :func:`~combicam.engine.inputs.listing.list_inputs`.
        RunError: something that cannot be listed.
    """
    try:
        entries = list_inputs(config.input, config.selection, tally)
        if config.truth is not None:
            entries = with_truth(entries, read_truth(config.truth))
        yield from entries
    except FileNotFoundError:
        raise
    except OSError as error:
        raise RunError(
            f"list inputs: expected to read {error.filename or config.input}, got "
            f"{error.strerror or repr(error)}; make it readable, or leave it out"
        ) from error


def warn_of_other_inputs(config: RunConfig, manifest: Manifest) -> None:
    """Warn of images added or removed since the start, if listing is fast: files, not tars."""
    is_slow = names_store(config.input) or manifest.shard(0)[0].offset is not None
    if is_slow or manifest.images > _LISTED_AGAIN:
        return
    try:
        difference = manifest.difference(run_inputs(config))
    except (
        ValueError,
        OSError,
        RunError,
    ) as error:  # inputs may be gone
        difference = first_line(error)
    if difference is not None:
        log.warning(
            f"run: expected the inputs that {config.output} was started with, got others "
            f"({difference}); new images are not in this run, use another output for them"
        )
