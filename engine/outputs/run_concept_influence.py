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
# Concept -> influence and share of the image, of all images that have it.
_Found = dict[int, "tuple[array[float], array[float]]"]


@dataclass(frozen=True)
class ConceptTable:
    """The influence of concepts on groups of photos.

    Attributes:
        rows: pyarrow table: ``group``, ``concept``, ``images`` (that have the concept),
            ``influence`` (its mean over them), ``median``, and ``coverage`` (the mean share of
            these images that is the concept).
        images: how many photos were used.
        without_mask: explained photos that have no mask.
        flat: photos whose heatmap is constant; not used.
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
    """The influence of concepts on the first target of every explained photo.

    Args:
        run: run directory.
        masks: folder of label maps, PNG with one channel, over the whole upright photo, at any
            size; named as :func:`~combicam.engine.inputs.masks.find_mask` says.
        names: CSV with the columns label and name; labels of one name are one concept, others are
            none.
        k: how many of the heatmap's pixels count, at the size of the model's input.
        by: column of the run whose values are groups, such as ``class_name``; or, with
            ``groups``, column of that file. Default: one group, ``all``.
        groups: CSV with the column id and the one that ``by`` names, such as ``country``.

    Raises:
        RunError: no run directory, or one without a committed shard.
        ValueError: no mask at all, none with a label that has a name, a mask that is no label map,
            no such column, or ``k`` larger than a heatmap.
        FileNotFoundError: no such file.
    """
    opened, concepts = open_run(run), _Concepts(_names(Path(names)))
    group_of = _groups(opened, by, groups)
    numbers = np.arange(len(concepts.names))
    found: dict[str, _Found] = {}
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
        group = found.setdefault(group_of.get(row["id"], NO_GROUP), {})
        for i in map(int, np.flatnonzero(~np.isnan(influence))):
            influences, areas = group.setdefault(i, (array("d"), array("d")))
            influences.append(influence[i])
            areas.append(area[i])
    if not counts["images"]:
        raise ValueError(
            f"influence: expected masks named by the photos' ids in {masks}, got none of "
            f"{counts['without_mask']} photos, {counts['flat']} more have constant heatmaps"
        )
    if not any(found.values()):
        raise ValueError(
            f"influence: expected masks with labels that {names} names, got none in those of "
            f"{counts['images']} photos; give the labels of these masks"
        )
    return ConceptTable(rows=_table(found, concepts.names), **counts)


class _Concepts:
    """Labels of masks -> 0..C-1, the concepts by name, and C for labels without one."""

    def __init__(self, names: Mapping[int, str]) -> None:
        self.names = list(dict.fromkeys(names.values()))
        self._labels = np.array(sorted(names), np.int64)
        self._numbers = np.array([self.names.index(names[i]) for i in self._labels.tolist()])

    def number(self, mask: NDArray[Any]) -> NDArray[np.int64]:
        at = np.searchsorted(self._labels, mask).clip(max=len(self._labels) - 1)
        return np.where(self._labels[at] == mask, self._numbers[at], len(self.names))


def _read_labels(path: Path) -> NDArray[Any]:
    """A label map [h,w].

    Raises:
        ValueError: a file that is no image of one channel of integers.
    """
    try:
        labels = read_mask(path)
    except DecodeError as error:
        raise ValueError(f"influence: {error}") from error
    if labels.ndim != 2:
        raise ValueError(
            f"influence: expected a label map of one channel, got {labels.shape} in {path}; "
            "colours are no labels"
        )
    check_labels(labels, f"influence: {path}")
    return labels


def _explained(opened: OpenRun) -> Iterator[tuple[dict[str, Any], NDArray[np.float32], bool]]:
    """Columns, heatmap [H,W] of the first target and whether it is constant; of the ok rows."""
    for index in opened.shards:
        shard = opened.shard(index)
        rows = shard.table.select(["id", "width", "height"]).to_pylist()
        for i in map(int, np.flatnonzero(shard.ok)):
            # Bytes may be constant where the map itself was not, quite.
            heatmap = shard.heatmap(i)[0]
            yield rows[i], heatmap, bool(shard.flat[i, 0] or heatmap.min() == heatmap.max())


def _seen(row: dict[str, Any], preprocess: Preprocess | None) -> Box:
    """The part of a photo that the network saw, as shares of its width and height."""
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


def _table(found: Mapping[str, _Found], names: list[str]) -> Any:
    rows = [
        {
            "group": group,
            "concept": names[i],
            "images": len(influences),
            "influence": float(np.mean(influences)),
            "median": float(np.median(influences)),
            "coverage": float(np.mean(areas)),
        }
        for group in sorted(found)
        for i, (influences, areas) in sorted(found[group].items())
    ]
    schema = pa.schema(
        [("group", pa.string()), ("concept", pa.string()), ("images", pa.int64())]
        + [(name, pa.float64()) for name in ("influence", "median", "coverage")]
    )
    return pa.Table.from_pylist(rows, schema)
