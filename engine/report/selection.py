"""Select the rows that a report shows, from the small columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from combicam.engine.report.query import Clause
from combicam.engine.run.open_run import OpenRun
from combicam.engine.shards.status import OK

# Without a filter, at most this part of the pictures goes to rows that failed.
_FAILED_SHARE = 1 / 8
# What every report tells of; other columns are read only where they are asked for.
_TOLD = ("status", "score", "class_name", "lat", "lon", "error_km")
# Paths of this machine are private.
_LEFT_OUT = "uri"


@dataclass(frozen=True)
class Chosen:
    """Rows of a run.

    Attributes:
        matching: ``pyarrow.Table`` of all rows that match the filter: ``status``, ``score`` (of
            the first target), ``row``, the most probable class as ``answer`` with its
            ``probability``, and ``class_name``, ``lat``, ``lon``, ``error_km`` if available.
        rows: int64, indices among the run's committed rows of those to show, in order.
        committed: number of committed rows.
        filtered: whether there was a filter.
    """

    matching: Any
    rows: NDArray[np.int64]
    committed: int
    filtered: bool


def choose_rows(run: OpenRun, sample: int, where: str | None, sort: str | None) -> Chosen:
    """Choose the rows to show: the first ones of an order, or else a random sample.

    The sample depends only on row indices, so most rows stay while a run continues. Without a
    filter, an eighth of the sample is reserved for failed rows.

    Args:
        run: to choose from.
        sample: largest number of rows.
        where: SQL condition, such as ``status = 'ok' and score > 0.5``; None for all.
        sort: SQL order, such as ``score desc, id``; None for a random sample, shown in the order
            of the inputs.

    Raises:
        ValueError: an invalid filter or order.
    """
    known = _known(run)
    keep = None if where is None else Clause("where", where, known)
    order = None if sort is None else Clause("sort", sort, known)
    names = {*_TOLD, *(keep.columns if keep else ()), *(order.columns if order else ())}
    table = _table(run, [name for name in known if name in names])
    matching = table
    if keep is not None:
        matching = table.filter(pc.is_in(table["row"], pa.array(keep.rows(table))))
    rows = matching.column("row").to_numpy()
    if order is not None:
        chosen = order.rows(matching)[:sample]
    else:
        ok = pc.equal(matching.column("status"), OK).to_numpy()
        spare = sample if where is not None else int(sample * _FAILED_SHARE)
        failed = _drawn(rows[~ok], spare if ok.any() else sample)
        if where is not None:
            chosen = _drawn(rows, sample)
        else:
            chosen = np.sort(np.concatenate([failed, _drawn(rows[ok], sample - len(failed))]))
    return Chosen(matching, chosen, table.num_rows, where is not None)


def _known(run: OpenRun) -> list[str]:
    """Columns for filters and orders; ``score`` and ``target`` are of the first target."""
    single = [
        field.name
        for field in run.dataset.schema
        if not pa.types.is_nested(field.type) and not pa.types.is_binary(field.type)
    ]
    return [*(name for name in single if name != _LEFT_OUT), "score", "target"]


def _table(run: OpenRun, names: list[str]) -> Any:
    first = {"score": "scores", "target": "targets"}
    columns = {
        name: pc.list_element(pc.field(first[name]), 0) if name in first else pc.field(name)
        for name in names
    }
    columns["answer"] = pc.list_element(pc.field("targets"), 0)
    columns["probability"] = pc.list_element(pc.field("scores"), 0)
    if "places" in run.dataset.schema.names:
        # The explained class need not be the most probable one.
        best = pc.list_element(pc.field("places"), 0)
        columns["answer"] = pc.struct_field(best, "class")
        columns["probability"] = pc.struct_field(best, "probability")
    table = run.dataset.to_table(columns=columns)
    return table.append_column("row", pa.array(np.arange(table.num_rows)))


def _drawn(rows: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """At most ``count`` rows, in order: those whose index has the smallest splitmix64 hash."""
    with np.errstate(over="ignore"):
        x = (rows.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    return np.sort(rows[np.argsort(x)[:count]])
