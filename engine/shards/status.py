"""Name what a row's ``status`` can be."""

from __future__ import annotations

OK = "ok"
DECODE_ERROR = "decode_error"
TOO_LARGE = "too_large"
MISSING = "missing"
NON_FINITE = "non_finite"
