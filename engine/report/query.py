"""Evaluate ``--where`` and ``--sort``, a user's SQL, in a DuckDB that can read only one table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import duckdb
import numpy as np
from numpy.typing import NDArray

# No files, no network, no Python variables, and no way to change these settings.
_SEALED: dict[str, Any] = {
    "enable_external_access": False,
    "autoload_known_extensions": False,
    "autoinstall_known_extensions": False,
    "python_enable_replacements": False,
    "temp_directory": "",
    "lock_configuration": True,
}
# Refused because their columns cannot be determined.
_REFUSED = {"SUBQUERY": "a subquery", "STAR": "a star"}


class Clause:
    """A condition or an order over some columns, checked to be nothing more.

    Args:
        kind: ``where`` or ``sort``.
        text: in SQL: ``score > 0.5`` or ``score desc, id``.
        known: columns that it may name.

    Attributes:
        columns: those of ``known`` that it names.

    Raises:
        ValueError: not a valid clause; the message lists the columns.
    """

    def __init__(self, kind: str, text: str, known: Sequence[str]) -> None:
        self._kind = kind
        self._text = text
        self._known = known
        tree, nodes = self._parsed(text)
        # Anything more than a clause changes the surrounding statement, or adds another one.
        if tree != self._parsed("row")[0]:
            raise self._mistake("it contains more than that")
        for node in nodes:
            if what := _REFUSED.get(node.get("class", "")):
                raise self._mistake(f"it has {what}")
        named = {name.lower() for node in nodes for name in node.get("column_names", ())}
        self.columns = frozenset(name for name in known if name.lower() in named)

    def rows(self, table: Any) -> NDArray[np.int64]:
        """Values of ``row``: of the matching rows, ascending; or of all rows, in this order.

        Args:
            table: ``pyarrow.Table`` with :attr:`columns` and the int64 column ``row``.

        Raises:
            ValueError: an unknown column, or an operation that its type does not support.
        """
        view = table.select(["row", *self.columns])
        with duckdb.connect(config=_SEALED) as connection:
            connection.register("rows", view)
            try:
                result = connection.execute(self._sql(self._text)).fetchnumpy()["row"]
            except duckdb.Error as error:
                raise self._mistake(str(error)) from None
        rows = np.asarray(result, np.int64)
        return np.sort(rows) if self._kind == "where" else rows

    def _sql(self, text: str) -> str:
        # The newline ends a comment; the last key breaks ties.
        clause = f"WHERE {text}\n" if self._kind == "where" else f"ORDER BY {text}\n, row"
        return f"SELECT row FROM rows {clause}"

    def _parsed(self, text: str) -> tuple[Any, list[dict[str, Any]]]:
        """The statements as parsed by DuckDB, without the clause, and all their nodes."""
        nodes: list[dict[str, Any]] = []

        def keep(node: dict[str, Any]) -> dict[str, Any]:
            nodes.append(node)
            return node

        try:
            with duckdb.connect(config=_SEALED) as connection:
                query = "SELECT json_serialize_sql($1::VARCHAR)"
                [(answer,)] = connection.execute(query, [self._sql(text)]).fetchall()
            tree = json.loads(answer, object_hook=keep)
        except (duckdb.Error, RecursionError) as error:
            raise self._mistake(str(error)) from None
        if tree["error"]:
            raise self._mistake(tree["error_message"])
        node = tree["statements"][0]["node"]
        if self._kind == "where":
            node.pop("where_clause", None)
        else:
            node["modifiers"][0].pop("orders", None)
        return tree, nodes

    def _mistake(self, why: str) -> ValueError:
        what, example = {
            "where": ("a condition", "status = 'ok' and score > 0.5"),
            "sort": ("an order", "score desc, id"),
        }[self._kind]
        return ValueError(
            f"{self._kind}: expected {what} over the columns {', '.join(self._known)}, got "
            f"{self._text!r} ({why.splitlines()[0]}); write it in SQL, as {example}"
        )
