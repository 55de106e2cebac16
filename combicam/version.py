"""The version, read by setup.py and written into artifacts and runs."""

__version__ = "0.2.0"
