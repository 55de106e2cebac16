"""The filter language, against a table whose answers are plain."""

from __future__ import annotations

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from combicam.engine.report.where import kinds, parse_where

PHOTOS = pa.table(
    {
        "number": pa.array(range(6), pa.int32()),
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


def passing(text: str) -> list[int]:
    rows: list[int] = (
        PHOTOS.filter(parse_where(text, PHOTOS.schema).expression).column("number").to_pylist()
    )
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
    ],
)
def test_rows_that_pass(text: str, rows: list[int]) -> None:
    assert passing(text) == rows
    query = f"select number from PHOTOS where {text} order by number"
    assert [number for (number,) in duckdb.sql(query).fetchall()] == rows


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("scor > 1", r"expected one of the columns number, id, .*, got scor at position 1"),
        ("scores > 1", "got scores at position 1"),
        ("score > '0.5'", r"expected a number such as 0\.5 to compare score with, .* position 9"),
        ("status > 5", "expected a text such as 'so' to compare status with, got 5 at position 10"),
        ("sure = 'yes'", "expected a truth value such as true"),
        ("score >", "got the end at position 8"),
        ("score", "expected one of =, .*after the column score, got the end"),
        ("", "got the end at position 1"),
        ("score like '%'", "after the column score, got like at position 7"),
        ("status = 'ok", "a text without its closing ' at position 10"),
        ("score > 0.5 status = 'ok'", "expected 'and', 'or' or the end, got status at position 13"),
        ("(score > 0.5", r"expected '\)', got the end at position 13"),
        ("score between 1 or 2", "expected 'and', got or at position 17"),
        ("score > 0.5; drop", "got ';' at position 12"),
        ("score = score", "got score at position 9"),
        ("width > 10px", "at position 9"),
        ("__import__('os') = 1", "got __import__ at position 1"),
    ],
)
def test_errors_name_the_position(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_where(text, PHOTOS.schema)


def test_a_filter_knows_its_columns() -> None:
    text = "score > 0.5 and (width = 3 or not score is null) and id like 'lat'"
    assert parse_where(text, PHOTOS.schema).columns == {"score", "width", "id"}


def test_columns_of_lists_cannot_be_asked() -> None:
    assert "scores" not in kinds(PHOTOS.schema)
    assert kinds(PHOTOS.schema)["lat"] == "number"


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


@settings(max_examples=60, deadline=None)
@given(st.one_of(st.text(max_size=20), st.lists(WORDS, max_size=12).map(" ".join)))
def test_any_text_is_a_filter_or_a_value_error(text: str) -> None:
    try:
        expression = parse_where(text, PHOTOS.schema).expression
    except ValueError as error:
        assert str(error).startswith("where: expected ")
    else:
        assert set(PHOTOS.filter(expression).column("number").to_pylist()) <= set(range(6))
