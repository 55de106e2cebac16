"""JPEG files for runs: postcards, and links where a run wants more files than there are photos."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from combicam.demo.planet import CELLS, postcard

DISTINCT = 500


def write_photos(folder: Path, count: int, side: int) -> list[Path]:
    """JPEG postcards of side x side pixels; the files beyond 500 are links to the first."""
    folder.mkdir(parents=True)
    paths = []
    for i in range(min(count, DISTINCT)):
        card = Image.fromarray(postcard(i % len(CELLS), i).image).resize((side, side))
        paths.append(folder / f"{i:06d}.jpg")
        card.save(paths[-1], quality=90)
    return paths + link_photos(paths, folder, count, len(paths))


def link_photos(photos: list[Path], folder: Path, count: int, first: int = 0) -> list[Path]:
    """Links to ``photos`` in turn, named by numbers from ``first`` to ``count``."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i:06d}.jpg" for i in range(first, count)]
    for i, path in enumerate(paths):
        path.hardlink_to(photos[i % len(photos)])
    return paths
