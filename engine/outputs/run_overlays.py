"""Draw overlays of a run's first explained images."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from combicam.engine.drawing.blend import blend, panel
from combicam.engine.explain.protocol import BatchExplainer
from combicam.engine.inputs.manifest import Manifest
from combicam.engine.pipeline.load import load
from combicam.engine.run.config import RunConfig
from combicam.engine.run.layout import RunLayout
from combicam.engine.shards.map_format import map_format
from combicam.engine.shards.status import OK
from combicam.engine.storage.new_file import new_file
from combicam.engine.storage.paths import is_remote, open_parquet

_ROWS = 16


def draw_overlays(
    run: RunLayout, manifest: Manifest, config: RunConfig, explainer: BatchExplainer
) -> tuple[Path, ...]:
    """Draw the first ``config.overlays`` ok rows, without images that no longer exist.

    Args:
        run: whose shards are all committed.
        manifest: of the run.
        config: overlays, explain, storage and decode are used.
        explainer: its preprocessing is used: the image is shown as the model saw it, but in RGB.

    Returns:
        The files, in the order of the rows.
    """
    folder = run.overlays
    if not is_remote(folder):
        folder.mkdir(exist_ok=True)
    maps = map_format(explainer, config.storage.store, config.storage.heatmap_size)
    rows, preprocess = _ok_rows(run, manifest), explainer.preprocess.in_colour()
    paths: list[Path] = []
    while len(paths) < config.overlays and (numbered := next(rows, None)) is not None:
        number, entry, row = numbered
        pixels = load(entry, preprocess, config.decode).pixels
        if pixels is None:
            continue
        size = (row["heatmap_height"], row["heatmap_width"]) if maps.varies else None
        heatmap = maps.heatmap(row["heatmap"], size)[0]
        fitted = Image.fromarray(heatmap).resize(pixels.shape[1::-1], Image.Resampling.BILINEAR)
        picture = panel(
            [pixels, blend(pixels, np.asarray(fitted))],
            ["input", "heatmap"],
            _footer(row, config.explain),
        )
        name = re.sub(r"[^A-Za-z0-9._-]+", "_", Path(entry.id).stem)[-80:]
        path = folder / f"{number:06d}_{name}.png"
        with new_file(path, "overlays") as temporary:
            Image.fromarray(picture).save(temporary, format="PNG")
        paths.append(path)
    return tuple(paths)


def _ok_rows(run: RunLayout, manifest: Manifest) -> Iterator[tuple[int, Any, dict[str, Any]]]:
    """Number, entry and columns of the explained rows, in order, a few at a time."""
    number = 0
    for shard in range(manifest.shards):
        entries = iter(manifest.shard(shard))
        with open_parquet(run.shard(shard)) as file:
            for batch in file.iter_batches(_ROWS):
                for row in batch.to_pylist():
                    entry = next(entries)
                    if row["status"] == OK:
                        yield number, entry, row
                    number += 1


def _footer(row: dict[str, Any], explain: Sequence[str]) -> list[str]:
    if explain and explain[0] != "top":  # the row's class is not that of the heatmap
        words = [explain[0]]
    else:
        words = [row.get("class_name") or f"class {row['targets'][0]}"]
        if row.get("lat") is not None:
            words.append(_place(row["lat"], row["lon"]))
    probability = row["scores"][0]
    words.append(f"{probability:.1%}" if probability >= 0.001 else f"{probability:.1e}")
    return [row["id"], " · ".join(words)]


def _place(lat: float, lon: float) -> str:
    return f"{abs(lat):.2f}°{'N' if lat >= 0 else 'S'} {abs(lon):.2f}°{'E' if lon >= 0 else 'W'}"
