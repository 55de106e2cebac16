"""Multi-layer class activation maps of any CNN at the cost of running it."""

from combicam.version import __version__

__all__ = ["__version__"]
