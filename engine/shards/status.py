"""What a row's ``status`` can be: explained, or why not."""

from __future__ import annotations

OK = "ok"
DECODE_ERROR = "decode_error"
TOO_LARGE = "too_large"
MISSING = "missing"
NON_FINITE = "non_finite"
