"""Triton where it exists; elsewhere (macOS, Windows) the kernels are never launched."""

from __future__ import annotations

from typing import Any

try:
    import triton.language as tl
    from triton import jit
except ImportError:
    tl: Any = None  # type: ignore[no-redef]

    def jit(fn: Any) -> Any:
        """The function, undecorated."""
        return fn


__all__ = ["cdiv", "jit", "next_power_of_2", "tl"]


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << max(n - 1, 0).bit_length()
