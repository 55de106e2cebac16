"""Import a package's public names when they are first used.

``combicam status`` and ``combicam --help`` need not import torch, which takes seconds.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

_TABLE = "_lazy_names"


class LazyPackage(ModuleType):
    """A package with a table, name -> module, and with its own modules as attributes."""

    def __getattr__(self, name: str) -> Any:
        """Import a name of the table, or a module of the package."""
        table: Mapping[str, str] = self.__dict__[_TABLE]
        if name in table:
            value = getattr(importlib.import_module(table[name]), name)
            self.__dict__[name] = value
            return value
        path = f"{self.__name__}.{name}"
        if name.startswith("_") or importlib.util.find_spec(path) is None:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return importlib.import_module(path)

    def __setattr__(self, name: str, value: Any) -> None:
        """Keep the names of the table: importing ``combicam.export.spec`` would otherwise rebind
        ``export`` from the function to the package."""
        if not (isinstance(value, ModuleType) and name in self.__dict__[_TABLE]):
            super().__setattr__(name, value)

    def __reduce__(self) -> tuple[Callable[[str], ModuleType], tuple[str]]:
        """By its name: functions that Ray, Spark or cloudpickle send may use ``combicam``."""
        return importlib.import_module, (self.__name__,)

    def __dir__(self) -> list[str]:
        """All names, including those not imported yet."""
        return sorted({*super().__dir__(), *self.__dict__[_TABLE]})


def make_lazy(package: str, modules: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Let a package import its public names when they are first used.

    Args:
        package: its ``__name__``.
        modules: module -> the public names that it defines.

    Returns:
        All names in order, for ``__all__``.
    """
    table = {name: module for module, names in modules.items() for name in names}
    module = sys.modules[package]
    module.__dict__[_TABLE] = table
    module.__class__ = LazyPackage
    return sorted(table)


class _LazyModule(ModuleType):
    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self.__name__), name)


def lazy_module(name: str) -> Any:
    """A module that is imported when something of it is first used."""
    return _LazyModule(name)
