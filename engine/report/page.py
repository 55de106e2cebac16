"""Assemble the page: one HTML file with data, styles and scripts."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Iterable, Mapping
from importlib.resources import files
from typing import Any

_SCRIPTS = (
    "format.js",
    "heat.js",
    "maps.js",
    "world.js",
    "overview.js",
    "state.js",
    "look.js",
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
    style = page_text("report.css")
    script = one_script(map(page_text, _SCRIPTS))
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
        "world": page_text("world.json").strip(),
        "data": script_json(data),
        "script": script,
    }
    return fill(page_text("report.html"), parts)


def fill(template: str, parts: Mapping[str, str]) -> str:
    """A page's template with ``<!--NAME-->`` replaced by the part of that name."""
    for name, part in parts.items():
        before, mark, after = template.partition(f"<!--{name}-->")
        assert mark, name
        template = before + part + after
    return template


def one_script(texts: Iterable[str]) -> str:
    """Files of JavaScript as one script, whose names no other script sees."""
    return "\n".join(["'use strict';", "(() => {", *texts, "})();"])


def script_json(data: Mapping[str, Any]) -> str:
    """JSON for a script element, without ``</script`` and ``<!--``."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def _hash(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"


def page_text(name: str) -> str:
    """The text of a file of the page: a script, ``report.css``, ``report.html``."""
    return files("combicam.engine.report").joinpath("page", name).read_text(encoding="utf-8")
