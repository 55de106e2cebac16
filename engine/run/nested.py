"""Make a nested configuration from flat keywords, as the command line does."""

from __future__ import annotations

import functools
import inspect
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

T = TypeVar("T")


def accepts_flat_keywords(config: type[T]) -> type[T]:
    """Let a dataclass accept the fields of its nested dataclasses as keywords.

    ``RunConfig(..., shard_size=100)`` is ``RunConfig(..., storage=StorageConfig(shard_size=100))``.
    Type checkers know only the second form.

    Args:
        config: a dataclass; nested ones have their class as ``default_factory``, and no two fields
            have the same name.
    """
    factories: dict[str, Any] = {field.name: field.default_factory for field in fields(config)}  # type: ignore[arg-type]
    outer = {
        field.name: name
        for name, factory in factories.items()
        if is_dataclass(factory)
        for field in fields(factory)
    }
    original: Any = config.__init__
    signature = inspect.signature(original)

    @functools.wraps(original)
    def init(self: T, *values: Any, **keywords: Any) -> None:
        flat = {name: keywords.pop(name) for name in list(keywords) if name not in factories}
        if unknown := sorted(flat.keys() - outer.keys()):
            known = sorted(factories.keys() | outer.keys())
            raise TypeError(f"{config.__name__}: expected fields of {known}, got {unknown}")
        given = signature.bind_partial(self, *values, **keywords).arguments
        for name in {outer[name] for name in flat}:
            changes = {inner: value for inner, value in flat.items() if outer[inner] == name}
            given[name] = replace(given.get(name) or factories[name](), **changes)
        original(**given)

    setattr(config, "__init__", init)  # noqa: B010 - mypy refuses the plain assignment
    return config
