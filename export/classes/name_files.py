"""Read names of classes in the forms in which people keep them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from combicam.requirements import require

NAME_SUFFIXES = (".json", ".txt", ".names")
IMAGENET = "imagenet"


def imagenet_names(subset: str = "imagenet-1k") -> tuple[str, ...]:
    """Names of the classes of ImageNet, the first of each class's synonyms, from timm.

    Args:
        subset: its name in timm: ``imagenet-1k``, ``imagenet-12k``, ``imagenet-22k``, …

    Raises:
        MissingExtra: timm is not installed.
    """
    data = require("timm.data", extra="models", operation="class names of ImageNet")
    return tuple(name.split(",")[0] for name in data.ImageNetInfo(subset).label_descriptions())


def read_names(path: Path) -> tuple[str, ...]:
    """Read a file of names alone.

    Args:
        path: text with a name in each line; or JSON: a list of names, ``{"0": name}``, ``{"0":
            [wnid, name]}`` (``imagenet_class_index.json``), ``{name: 0}`` (``class_to_idx``), or
            any of these under ``id2label`` (the ``config.json`` of Hugging Face).

    Raises:
        ValueError: another form, a class that is missing or there twice.
    """
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix.lower() != ".json":
        names = [line.strip() for line in text.splitlines()]
        while names and not names[-1]:
            names.pop()
        if not names or not all(names):
            got = f"line {names.index('') + 1} empty" if names else "no line"
            raise ValueError(f"classes: expected a name in each line of {path}, got {got}")
        return tuple(names)
    try:
        found: Any = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"classes: expected JSON in {path}, got {error}") from error
    if isinstance(found, dict) and isinstance(found.get("id2label"), dict | list):
        found = found["id2label"]
    pairs = _pairs(found)
    if pairs is None or sorted(index for index, _ in pairs) != list(range(len(pairs))):
        raise ValueError(
            f"classes: expected {path} to name the classes 0, 1, … each once, as a list, as "
            '{"0": "name"}, {"0": ["n01440764", "name"]} or {"name": 0}, got '
            f"{text[:60].strip()!r}"
        )
    return tuple(name for _, name in sorted(pairs))


def _pairs(found: Any) -> list[tuple[int, str]] | None:
    """(class, name) of every entry; None for another form."""
    if isinstance(found, list):
        found = dict(enumerate(found))
    if not isinstance(found, dict) or not found:
        return None
    pairs = []
    for key, value in found.items():
        if isinstance(value, list) and value:
            value = value[-1]
        if isinstance(value, int) and not isinstance(value, bool):  # name -> class
            key, value = value, key
        if not isinstance(value, str) or not str(key).isdecimal():
            return None
        pairs.append((int(key), value))
    return pairs
