"""Prepare the API reference: one tree of the packages, docstrings as griffe reads them."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import griffe

ROOT = Path(__file__).parents[1]
TREE = ROOT / "build" / "api" / "combicam"
PLACES = {"combicam": "", "engine": "engine", "export": "export", "kernels": "kernels"}
_ROLE = re.compile(r":(?:class|func|meth|mod):`~?([\w.]+)`")
# "latitudes, longitudes: degrees", with its continuation lines.
_SEVERAL = re.compile(r"^( *)(\w+(?:,\s+\w+)+):( .*(?:\n\1 +.*)*)", re.MULTILINE)


def on_startup(**_: Any) -> None:
    """Copy the sources to where setup.py maps them; griffe reads files and resolves symlinks.

    Before any plugin is configured: mkdocstrings keeps the paths that are there then.
    """
    shutil.rmtree(TREE, ignore_errors=True)
    for folder, place in PLACES.items():
        for source in (ROOT / folder).rglob("*.py"):
            copy = TREE / place / source.relative_to(ROOT / folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, copy)


class Docstrings(griffe.Extension):
    """Take Sphinx roles out, and give each of several arguments the text they share."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called by griffe for every module, class, function and attribute."""
        if obj.docstring:
            text = _ROLE.sub(lambda role: f"`{role[1].rpartition('.')[2]}`", obj.docstring.value)
            obj.docstring.value = _SEVERAL.sub(_one_a_name, text)


def _one_a_name(entry: re.Match[str]) -> str:
    indent, names, text = entry.groups()
    return "\n".join(f"{indent}{name}:{text}" for name in re.split(r",\s+", names))
