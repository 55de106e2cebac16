"""Assemble the page: one HTML file with data, styles and scripts."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

_SCRIPTS = (
    "format.js",
    "maps.js",
    "world.js",
    "overview.js",
    "state.js",
    "gallery.js",
    "detail.js",
    "main.js",
)


def page(title: str, data: Mapping[str, Any]) -> str:
    """HTML of a report; opens from disk without network access.

    Names, labels and errors come from users. They are passed as JSON in which tags are escaped,
    and scripts insert them into the page as text. The content security policy allows the page's
    own style and script by their hashes, and inline images: nothing else runs or is loaded.

    Args:
        title: of the page, any text.
        data: JSON-ready, see ``facts.py`` and ``report.py``.
    """
    style = _file("report.css")
    script = "\n".join(["'use strict';", "(() => {", *map(_file, _SCRIPTS), "})();"])
    policy = "; ".join(
        (
            "default-src 'none'",
            "img-src data:",
            f"style-src {_hash(style)}",
            f"script-src {_hash(script)}",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )
    parts = {
        "title": html.escape(title),
        "policy": html.escape(policy, quote=True),
        "style": style,
        "world": _file("world.json").strip(),
        "data": _json(data),
        "script": script,
    }
    text = _file("report.html")
    for name, part in parts.items():
        before, mark, after = text.partition(f"<!--{name}-->")
        assert mark, name
        text = before + part + after
    return text


def _json(data: Mapping[str, Any]) -> str:
    """JSON for a script element, without ``</script`` and ``<!--``."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def _hash(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"


def _file(name: str) -> str:
    return files("combicam.engine.report").joinpath("page", name).read_text(encoding="utf-8")
