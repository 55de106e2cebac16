"""``--where``: a small part of SQL over a run's columns, as a ``pyarrow`` expression.

    or      = and ("or" and)*
    and     = not ("and" not)*
    not     = "not" not | "(" or ")" | test
    test    = column ("=" | "!=" | "<>" | "<" | "<=" | ">" | ">=") value
            | column "is" ["not"] "null"
            | column ["not"] "in" "(" value ("," value)* ")"
            | column ["not"] "between" value "and" value
            | column ["not"] "like" 'text'
    value   = number | 'text' | true | false

As in SQL a comparison with a missing value is neither true nor false, and its row is left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.compute as pc

_TOKEN = re.compile(
    r"""(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?![\w.]))
      | (?P<text>'(?:[^']|'')*')
      | (?P<name>[^\W\d]\w*|"(?:[^"]|"")+")
      | (?P<symbol><=|>=|<>|!=|[=<>(),])""",
    re.VERBOSE,
)
_WORDS = frozenset({"and", "or", "not", "is", "null", "in", "between", "like", "true", "false"})
_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "=": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<>": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}


@dataclass(frozen=True)
class _Token:
    """``kind``: number, text, name, word, symbol or end; ``at``: position in the text, from 1."""

    kind: str
    text: str
    at: int


@dataclass(frozen=True)
class Filter:
    """``expression``: of ``pyarrow.compute``; ``columns``: which it asks for."""

    expression: Any
    columns: frozenset[str]


def parse_where(text: str, schema: Any) -> Filter:
    """A filter of rows.

    Args:
        text: such as ``status = 'ok' and score > 0.5``; see the grammar above.
        schema: ``pyarrow.Schema`` of what it is about; columns of lists and bytes cannot be asked.

    Raises:
        ValueError: no such column, a value of another kind, or no sentence of the grammar; the
            message names the position.
    """
    parser = _Parser(text, schema)
    found = parser.either()
    parser.expect_end()
    return Filter(found, frozenset(parser.columns))


def kind_of(column: Any) -> str | None:
    """``number``, ``text`` or ``truth value``; None for a type that cannot be asked."""
    if pa.types.is_integer(column) or pa.types.is_floating(column):
        return "number"
    if pa.types.is_string(column) or pa.types.is_large_string(column):
        return "text"
    return "truth value" if pa.types.is_boolean(column) else None


def kinds(schema: Any) -> dict[str, str]:
    """Columns that can be asked -> what they hold."""
    found = {field.name: kind_of(field.type) for field in schema}
    return {name: kind for name, kind in found.items() if kind is not None}


def _tokens(text: str) -> Iterable[_Token]:
    at = 0
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        match = _TOKEN.match(text, at)
        if match is None:
            what = "a text without its closing '" if text[at] == "'" else repr(text[at])
            raise ValueError(
                f"where: expected a column, value, comparison or bracket, got {what} at position "
                f"{at + 1} of {text!r}; texts are written 'so'"
            )
        kind, found = str(match.lastgroup), match[0]
        if kind == "name" and found.lower() in _WORDS:
            kind, found = "word", found.lower()
        yield _Token(kind, found, at + 1)
        at = match.end()
    yield _Token("end", "", len(text) + 1)


class _Parser:
    """Recursive descent; a method for every rule of the grammar."""

    def __init__(self, text: str, schema: Any) -> None:
        self._text = text
        self._tokens = list(_tokens(text))
        self._kinds = kinds(schema)
        self._next = 0
        self.columns: set[str] = set()

    def either(self) -> Any:
        found = self._both()
        while self._takes("or"):
            found = found | self._both()
        return found

    def _both(self) -> Any:
        found = self._negated()
        while self._takes("and"):
            found = found & self._negated()
        return found

    def _negated(self) -> Any:
        if self._takes("not"):
            return ~self._negated()
        if self._takes("("):
            found = self.either()
            self._expect(")")
            return found
        return self._test()

    def _test(self) -> Any:
        name, kind = self._column()
        field = pc.field(name)
        if self._takes("is"):
            negated = self._takes("not")
            self._expect("null")
            return field.is_valid() if negated else field.is_null()
        if self._token.text in _COMPARE:
            compare = _COMPARE[self._taken().text]
            return compare(field, self._value(name, kind))
        negated = self._takes("not")
        found = self._set_test(field, name, kind)
        return ~found if negated else found

    def _set_test(self, field: Any, name: str, kind: str) -> Any:
        if self._takes("in"):
            self._expect("(")
            values = [self._value(name, kind)]
            while self._takes(","):
                values.append(self._value(name, kind))
            self._expect(")")
            found = field == values[0]
            for value in values[1:]:
                found = found | (field == value)
            return found
        if self._takes("between"):
            low = self._value(name, kind)
            self._expect("and")
            return (field >= low) & (field <= self._value(name, kind))
        if self._token.text == "like" and kind == "text":
            self._taken()
            return pc.match_like(field, self._value(name, kind))
        words = "=, !=, <, <=, >, >=, is, in, between" + (", like" if kind == "text" else "")
        self._fail(f"one of {words} after the column {name}", self._token)

    def _column(self) -> tuple[str, str]:
        token = self._taken()
        name = token.text
        if name.startswith('"'):
            name = name[1:-1].replace('""', '"')
        if token.kind != "name" or name not in self._kinds:
            self._fail(f"one of the columns {', '.join(self._kinds)}", token)
        self.columns.add(name)
        return name, self._kinds[name]

    def _value(self, name: str, kind: str) -> Any:
        token = self._taken()
        value: Any = None
        if token.kind == "number" and kind == "number":
            value = float(token.text) if re.search("[.eE]", token.text) else int(token.text)
            if isinstance(value, int) and not -(2**63) <= value < 2**63:
                value = float(value)
        elif token.kind == "text" and kind == "text":
            value = token.text[1:-1].replace("''", "'")
        elif token.text in ("true", "false") and kind == "truth value":
            value = token.text == "true"
        if value is None:
            example = {"number": "0.5", "text": "'so'", "truth value": "true"}[kind]
            self._fail(f"a {kind} such as {example} to compare {name} with", token)
        return value

    def expect_end(self) -> None:
        if self._token.kind != "end":
            self._fail("'and', 'or' or the end", self._token)

    @property
    def _token(self) -> _Token:
        return self._tokens[self._next]

    def _taken(self) -> _Token:
        token = self._token
        self._next = min(self._next + 1, len(self._tokens) - 1)
        return token

    def _takes(self, text: str) -> bool:
        """Go on if this comes next."""
        if self._token.kind not in ("word", "symbol") or self._token.text != text:
            return False
        self._taken()
        return True

    def _expect(self, text: str) -> None:
        if not self._takes(text):
            self._fail(repr(text), self._token)

    def _fail(self, expected: str, token: _Token) -> NoReturn:
        got = "the end" if token.kind == "end" else token.text
        raise ValueError(
            f"where: expected {expected}, got {got} at position {token.at} of {self._text!r}; "
            "write it as in SQL"
        )
