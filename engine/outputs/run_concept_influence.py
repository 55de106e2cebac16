"""Measure concept influence over a run, by class or by group."""

from __future__ import annotations

import csv
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from combicam.engine.images.resize import visible_box
from combicam.engine.inputs.masks import find_mask, read_mask
from combicam.engine.outputs.concept_influence import (
    TOP_PIXELS,
    Box,
    check_labels,
    resized_labels,
    shares,
)
from combicam.engine.run.open_run import OpenRun, open_run
from combicam.errors import DecodeError
from combicam.export.classes.tables import readable
from combicam.export.preprocess import Preprocess

ALL, NO_GROUP = "all", "(none)"
# Concept -> influence and share of the image, for all images that have it.
_Values = dict[int, "tuple[array[float], array[float]]"]


@dataclass(frozen=True)
class ConceptTable:
    """The influence of concepts on groups of images.

    Attributes:
        rows: pyarrow table: ``group``, ``concept``, ``images`` (with the concept), ``influence``
            (mean over these images), ``median``, and ``coverage`` (mean share of these images'
            area that is the concept).
        images: number of images used.
        without_mask: explained images that have no mask.
        flat: images whose heatmap is constant; not used.
    """

    rows: Any
    images: int
    without_mask: int
    flat: int


def run_influence(
    run: str | Path,
    masks: str | Path,
    names: str | Path,
    k: int = TOP_PIXELS,
    by: str | None = None,
    groups: str | Path | None = None,
) -> ConceptTable:
    """Measure the influence of concepts on the first target of every explained image.

    Args:
        run: run directory.
        masks: folder of label maps, single-channel PNGs of any size that cover the whole upright
            image; for their names see :func:`~combicam.engine.inputs.masks.find_mask`.
        names: CSV with the columns label and name; labels that share a name are one concept,
            labels without one are ignored.
        k: how many of the heatmap's pixels count, at the size of the model's input.
        by: column that groups the rows, such as ``class_name``; of the run, or of ``groups``.
            Default: one group, ``all``.
        groups: CSV with the columns id and ``by``, such as ``country``.

    Raises:
        RunError: not a run directory, or one without a committed shard.
        ValueError: no masks, no mask with a named label, a mask that is not a label map, a missing
            column, or ``k`` larger than a heatmap.
        FileNotFoundError: a missing file.
    """
    opened, concepts = open_run(run), _Concepts(_names(Path(names)))
    group_of = _groups(opened, by, groups)
    numbers = np.arange(len(concepts.names))
    values: dict[str, _Values] = {}
    counts = {"images": 0, "without_mask": 0, "flat": 0}
    preprocess = opened.preprocess
    for row, heatmap, flat in _explained(opened):
        path = find_mask(Path(masks), row["id"])
        kind = "flat" if flat else "images" if path is not None else "without_mask"
        counts[kind] += 1
        if flat or path is None:
            continue
        size = (heatmap.shape[0], heatmap.shape[1])
        mask = concepts.number(resized_labels(_read_labels(path), size, _seen(row, preprocess)))
        influence, area = shares(heatmap, mask, k, numbers)
        group = values.setdefault(group_of.get(row["id"], NO_GROUP), {})
        for i in map(int, np.flatnonzero(~np.isnan(influence))):
            influences, areas = group.setdefault(i, (array("d"), array("d")))
            influences.append(influence[i])
            areas.append(area[i])
    if not counts["images"]:
        raise ValueError(
            f"influence: expected masks named by the images' ids in {masks}, got none of "
            f"{counts['without_mask']} images, {counts['flat']} more have constant heatmaps"
        )
    if not any(values.values()):
        raise ValueError(
            f"influence: expected masks with labels that {names} names, got none in those of "
            f"{counts['images']} images; give the labels of these masks"
        )
    return ConceptTable(rows=_table(values, concepts.names), **counts)


class _Concepts:
    """Maps labels to 0..C-1, the concepts by name, and labels without a name to C."""

    def __init__(self, names: Mapping[int, str]) -> None:
        self.names = list(dict.fromkeys(names.values()))
        self._labels = np.array(sorted(names), np.int64)
        self._numbers = np.array([self.names.index(names[i]) for i in self._labels.tolist()])

    def number(self, mask: NDArray[Any]) -> NDArray[np.int64]:
        at = np.searchsorted(self._labels, mask).clip(max=len(self._labels) - 1)
        return np.where(self._labels[at] == mask, self._numbers[at], len(self.names))


def _read_labels(path: Path) -> NDArray[Any]:
    """Read a label map [h,w].

    Raises:
        ValueError: not an image with one channel of integers.
    """
    try:
        labels = read_mask(path)
    except DecodeError as error:
        raise ValueError(f"influence: {error}") from error
    if labels.ndim != 2:
        raise ValueError(
            f"influence: expected a label map of one channel, got {labels.shape} in {path}; "
            "colours are not labels"
        )
    check_labels(labels, f"influence: {path}")
    return labels


def _explained(opened: OpenRun) -> Iterator[tuple[dict[str, Any], NDArray[np.float32], bool]]:
    """Columns and heatmap [H,W] of the first target of the ok rows, and whether it is constant."""
    for index in opened.shards:
        shard = opened.shard(index)
        rows = shard.table.select(["id", "width", "height"]).to_pylist()
        for i in map(int, np.flatnonzero(shard.ok)):
            # Bytes may be constant even if the map itself was not quite.
            heatmap = shard.heatmap(i)[0]
            yield rows[i], heatmap, bool(shard.flat[i, 0] or heatmap.min() == heatmap.max())


def _seen(row: dict[str, Any], preprocess: Preprocess | None) -> Box:
    """The part of an image that the model saw, as shares of its width and height."""
    width, height = photo = (row["width"], row["height"])
    left, top, right, bottom = visible_box(photo, preprocess)
    return left / width, top / height, right / width, bottom / height


def _names(path: Path) -> dict[int, str]:
    """label -> concept."""
    columns, rows = _csv(path)
    if not {"label", "name"} <= set(columns):
        raise ValueError(
            f"influence: expected {path} to have the columns label and name, got {columns}"
        )
    names: dict[int, str] = {}
    for row in rows:
        try:
            label = int(row["label"])
        except (TypeError, ValueError) as error:
            raise ValueError(f"influence: expected labels in {path}, got {error}") from error
        if label < 0 or not row["name"] or label in names:
            raise ValueError(
                f"influence: expected labels >= 0 in {path}, each once and with a name, got "
                f"{label} for {row['name']!r}" + (" again" if label in names else "")
            )
        names[label] = row["name"]
    if not names:
        raise ValueError(f"influence: expected labels in {path}, got no row")
    return names


def _csv(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Columns and rows."""
    with readable(path, "influence"), path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        return list(reader.fieldnames or ()), list(reader)


def _groups(opened: OpenRun, by: str | None, groups: str | Path | None) -> Mapping[str, str]:
    """id -> group."""
    source: object = opened.path if groups is None else groups
    known: list[str] = opened.dataset.schema.names
    if by is None and groups is None:
        return dict.fromkeys(opened.table(["id"]).column("id").to_pylist(), ALL)
    if groups is not None:
        known, rows = _csv(Path(groups))
    if by is None:
        raise ValueError(
            f"influence: expected a column of {source} to group by, got none; name one of {known} "
            "with --by"
        )
    if not {"id", by} <= set(known):
        raise ValueError(
            f"influence: expected {source} to have the columns id and {by}, got {known}; name one "
            "with --by"
        )
    if groups is None:
        rows = opened.table(["id", by]).to_pylist()
    return {row["id"]: str(row[by]) for row in rows if row[by] not in (None, "")}


def _table(values: Mapping[str, _Values], names: list[str]) -> Any:
    rows = [
        {
            "group": group,
            "concept": names[i],
            "images": len(influences),
            "influence": float(np.mean(influences)),
            "median": float(np.median(influences)),
            "coverage": float(np.mean(areas)),
        }
        for group in sorted(values)
        for i, (influences, areas) in sorted(values[group].items())
    ]
    schema = pa.schema(
        [("group", pa.string()), ("concept", pa.string()), ("images", pa.int64())]
        + [(name, pa.float64()) for name in ("influence", "median", "coverage")]
    )
    return pa.Table.from_pylist(rows, schema)
