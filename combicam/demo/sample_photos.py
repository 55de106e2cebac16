"""Write photos that a page offers to try a model on."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from combicam.demo.photographs import PHOTOGRAPHS, write_photographs
from combicam.demo.tour import write_postcards

_POSTCARDS = 4
_SEED = 2_000_000  # the demo's


def write_sample_photos(model: str, folder: Path) -> tuple[Path, ...]:
    """Write photos that suit a model: postcards for the demo's, else photographs.

    Args:
        model: its name.
        folder: of the files.

    Returns:
        The files; none if the photographs are not installed (extra ``photos``).
    """
    if model == "demo":
        write_postcards(folder, _POSTCARDS, _SEED)
        return tuple(sorted((folder / "photos").iterdir()))
    if importlib.util.find_spec("skimage") is None:
        return ()
    write_photographs(folder, folder / "photographs.csv")
    return tuple(folder / photo.file for photo in PHOTOGRAPHS)
