"""Define the values of a row's ``status``."""

from __future__ import annotations

OK = "ok"
DECODE_ERROR = "decode_error"
TOO_LARGE = "too_large"
UNSUPPORTED = "unsupported"
MISSING = "missing"
NON_FINITE = "non_finite"
FAILURES = (DECODE_ERROR, TOO_LARGE, UNSUPPORTED, MISSING, NON_FINITE)
