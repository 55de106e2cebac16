"""Import optional packages, or name the extra that installs them."""

from __future__ import annotations

import importlib
from typing import Any

from combicam.errors import MissingExtra


def require(module: str, *, extra: str, operation: str) -> Any:
    """Import a module of an extra.

    Args:
        module: its full name.
        extra: of setup.py.
        operation: what needs it; the error message begins with it.

    Raises:
        MissingExtra: it cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtra(
            f"{operation}: expected {module} to be installed, got {error}; run: "
            f"pip install 'combicam[{extra}]'"
        ) from error


def onnxruntime() -> Any:
    """Import ONNX Runtime with its telemetry off: combicam sends nothing anywhere."""
    module = importlib.import_module("onnxruntime")
    module.disable_telemetry_events()
    return module
