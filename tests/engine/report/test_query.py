"""Conditions and orders in SQL, against a table whose answers are plain; what they may not do."""

from __future__ import annotations

from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from combicam.engine.report.query import _SEALED, Clause

PHOTOS = pa.table(
    {
        "row": pa.array(range(6), pa.int64()),
        "id": ["a.jpg", "b.png", "it's.jpg", "d_d.jpg", "e%e.jpg", None],
        "status": ["ok", "ok", "missing", "ok", "too_large", "ok"],
        "score": pa.array([0.9, 0.5, None, 0.1, None, 1e-9], pa.float32()),
        "width": pa.array([640, 1024, None, 10, 99999, 0], pa.int32()),
        "lat": pa.array([-33.9, 0.0, 51.5, None, 90.0, -90.0], pa.float64()),
        "sure": [True, False, None, True, True, False],
        "two words": pa.array([1, 2, 3, 4, 5, 6], pa.int64()),
        "scores": pa.array([[0.9]] * 6, pa.list_(pa.float32())),
    }
)


KNOWN = [name for name in PHOTOS.column_names if name not in ("row", "scores")]


def passing(text: str) -> list[int]:
    rows: list[int] = Clause("where", text, KNOWN).rows(PHOTOS).tolist()
    return rows


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("status = 'ok'", [0, 1, 3, 5]),
        ("status = 'ok' and score > 0.4", [0, 1]),
        ("score>.4 OR status<>'ok'", [0, 1, 2, 4]),
        ("not status = 'ok'", [2, 4]),
        ("not (score > 0.4)", [3, 5]),
        ("score is null", [2, 4]),
        ("score is not null and not score >= 0.5", [3, 5]),
        ("status = 'ok' and score > 0.4 or width > 5000", [0, 1, 4]),
        ("status = 'ok' and (score > 0.4 or width = 10)", [0, 1, 3]),
        ("id = 'it''s.jpg'", [2]),
        ("id like '%.jpg'", [0, 2, 3, 4]),
        ("id not like '%.jpg'", [1]),
        ("status in ('missing', 'too_large')", [2, 4]),
        ("width not in (640, 10)", [1, 4, 5]),
        ("lat between -40 and 0", [0, 1]),
        ("lat not between -40 and 1e2", [5]),
        ("lat < -33.9", [5]),
        ("sure = true and width >= 10.5", [0, 4]),
        ('"two words" >= 5', [4, 5]),
        ("width < 99999999999999999999", [0, 1, 3, 4, 5]),
        ("Score > 0.4 -- of the first target", [0, 1]),
        ("score > lat or length(id) = 7", [0, 1, 3, 4, 5]),
        ("true", [0, 1, 2, 3, 4, 5]),
    ],
)
def test_rows_that_pass(text: str, rows: list[int]) -> None:
    assert passing(text) == rows
    query = f"select row from PHOTOS where {text}\n order by row"
    assert [row for (row,) in duckdb.sql(query).fetchall()] == rows


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("score desc, id", [0, 1, 3, 5, 4, 2]),
        ("score, width desc", [5, 3, 1, 0, 4, 2]),
        ("status", [2, 0, 1, 3, 5, 4]),
        ("sure desc nulls first -- those first", [2, 0, 3, 4, 1, 5]),
        ('abs(lat) desc, "two words" desc', [5, 4, 2, 0, 1, 3]),
    ],
)
def test_orders(text: str, rows: list[int]) -> None:
    assert Clause("sort", text, KNOWN).rows(PHOTOS).tolist() == rows


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("scor > 1", 'Referenced column "scor" not found'),
        ("scores > 1", 'Referenced column "scores" not found'),
        ("score > 'much'", "Could not convert string 'much'"),
        ("sure = 'perhaps'", "Could not convert string 'perhaps'"),
        ("score >", "syntax error"),
        ("", "syntax error"),
        ("score like '%'", "No function matches"),
        ("status = 'ok", "unterminated"),
        ("score > 0.5 status = 'ok'", "syntax error"),
        ("(score > 0.5", "syntax error"),
        ("score between 1 or 2", "syntax error"),
        ("score > 0.5 /* and", "unterminated"),
        ("width > 10 px", "syntax error|more than that"),
        ("__import__('os') = 1", "__import__ does not exist"),
        ("score > $1", "more than that|parameters"),
        ("sum(score) > 1", "WHERE clause cannot contain aggregates"),
        ("\ud800", "surrogate"),
    ],
)
def test_mistakes_name_the_columns(text: str, message: str) -> None:
    columns = "where: expected a condition over the columns id, status, score, .*"
    with pytest.raises(ValueError, match=f"{columns}, got .*(?:{message}).*in SQL") as error:
        passing(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "true; drop table rows",
        "true; select 1",
        "true union select 1",
        "true) or (true",
        "true order by row limit 1",
        "true group by row",
        "true limit 1",
        "true offset 1",
        "true using sample 1",
        "true qualify row_number() over () = 1",
        "score > (select avg(score) from rows)",
        "id in (select content from read_text('SECRET'))",
        "exists (from 'SECRET')",
        "id in (from duckdb_settings())",
        "read_text('SECRET') is not null",
        "columns(*) is not null",
        "true; copy rows to 'STOLEN'",
        "true; attach 'STOLEN'",
        "true; set lock_configuration = false",
        "getenv('HOME') is not null",
    ],
)
def test_a_condition_reaches_nothing_else(text: str, tmp_path: Path) -> None:
    secret, stolen = tmp_path / "secret.csv", tmp_path / "stolen.csv"
    secret.write_text("content\na.jpg\n")
    with pytest.raises(ValueError, match="where: expected a condition over the columns id, "):
        passing(text.replace("SECRET", str(secret)).replace("STOLEN", str(stolen)))
    assert not stolen.exists()


@pytest.mark.parametrize(
    "text",
    [
        "score limit 1 --",
        "score; select 1 order by score",
        "(select max(score) from rows)",
        "score down",
        "heat",
        "*",
        "",
        "score union select 1",
    ],
)
def test_an_order_reaches_nothing_else(text: str) -> None:
    with pytest.raises(ValueError, match="sort: expected an order over the columns id, "):
        Clause("sort", text, KNOWN).rows(PHOTOS)


@pytest.mark.parametrize(
    "statement",
    [
        "from read_text('FOLDER/secret.csv')",
        "from 'FOLDER/secret.csv'",
        "from glob('FOLDER/*')",
        "copy (select 1) to 'FOLDER/stolen.csv'",
        "attach 'FOLDER/stolen.db'",
        "install httpfs",
        "set enable_external_access = true",
        "set lock_configuration = false",
        "from PHOTOS",
    ],
)
def test_the_database_itself_is_sealed(statement: str, tmp_path: Path) -> None:
    (tmp_path / "secret.csv").write_text("content\na.jpg\n")
    refused = (duckdb.PermissionException, duckdb.InvalidInputException, duckdb.CatalogException)
    with duckdb.connect(config=_SEALED) as connection, pytest.raises(refused):
        connection.execute(statement.replace("FOLDER", str(tmp_path)))
    assert [path.name for path in tmp_path.iterdir()] == ["secret.csv"]


def test_a_clause_knows_its_columns() -> None:
    text = "score > 0.5 and (Width = 3 or not score is null) and id like 'lat'"
    assert Clause("where", text, KNOWN).columns == {"score", "width", "id"}
    order = Clause("sort", 'abs(lat) desc, "two words", coalesce(score, 0)', KNOWN)
    assert order.columns == {"lat", "two words", "score"}


def test_only_the_columns_named_are_needed() -> None:
    table = PHOTOS.select(["row", "score"])
    assert Clause("where", "score > 0.4", KNOWN).rows(table).tolist() == [0, 1]
    assert Clause("sort", "score", KNOWN).rows(table.slice(1, 3)).tolist() == [3, 1, 2]


WORDS = st.sampled_from(
    [
        "score",
        "status",
        "and",
        "or",
        "not",
        "(",
        ")",
        "=",
        "<",
        "'ok'",
        "0.5",
        "is",
        "null",
        "in",
        ",",
    ]
)


@settings(max_examples=60)
@given(st.one_of(st.text(max_size=20), st.lists(WORDS, max_size=12).map(" ".join)))
def test_any_text_is_a_filter_or_a_value_error(text: str) -> None:
    try:
        rows = Clause("where", text, KNOWN).rows(PHOTOS)
    except ValueError as error:
        assert str(error).startswith("where: expected ")
    else:
        assert rows.dtype == np.int64 and set(rows.tolist()) <= set(range(6))
