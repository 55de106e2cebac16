"""Define the errors that are not simply a caller's ``ValueError`` or ``TypeError``."""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """Type and first line of an error, to quote in another; torch appends its C++ stack."""
    lines = [line for line in str(error).splitlines() if line.strip()] or [""]
    return f"{type(error).__name__}: {lines[0]}"


class CombicamError(Exception):
    """Base class of combicam's own errors."""


class LayerError(CombicamError, ValueError):
    """A layer selection that matches nothing usable in the model."""


class TraceError(CombicamError):
    """The model could not be rewritten into one graph."""


class ArtifactError(CombicamError):
    """A file that is not a combicam artifact, or does not match its description."""


class ModelError(CombicamError, ValueError):
    """A model name or a checkpoint that cannot be turned into a CNN."""


class MissingExtra(CombicamError, ImportError):
    """An optional dependency is not installed; the message names the extra that installs it."""


class DecodeError(CombicamError):
    """An input file that is not a readable image."""


class RunError(CombicamError):
    """A run directory that cannot be used as requested."""
