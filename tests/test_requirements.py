"""What is optional and not there names its extra; setup.py has all extras that are named."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from combicam import MissingExtra
from combicam.engine.storage.paths import location
from combicam.requirements import require

ROOT = Path(__file__).parents[1]


def test_what_is_there_is_imported() -> None:
    assert require("json", extra="none", operation="test") is json


def test_what_is_not_there_names_operation_module_and_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = r"^test: expected no_such_thing\.at_all to be installed, got No module .*; run: "
    with pytest.raises(MissingExtra, match=expected + r"pip install 'combicam\[some\]'$"):
        require("no_such_thing.at_all", extra="some", operation="test")
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(MissingExtra, match=r"location gs://b/run: .*combicam\[gs\]"):
        location("gs://b/run")


def test_extras_that_are_named_exist() -> None:
    named = {
        extra
        for folder in ("combicam", "engine", "export", "kernels")
        for path in (ROOT / folder).rglob("*.py")
        for extra in re.findall(r'require\([^)]*extra="([a-z0-9-]+)"', path.read_text())
    }
    known = re.search(r"extras_require=\{(.*?)\}", (ROOT / "setup.py").read_text(), re.DOTALL)
    assert known is not None and len(named) >= 5
    assert named <= set(re.findall(r'"([a-z0-9-]+)":', known[1]))
