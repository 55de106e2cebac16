"""Import Triton where it exists; elsewhere (macOS, Windows) no kernel is ever launched."""

from __future__ import annotations

from typing import Any

import torch

try:
    import triton.language as tl
    from triton import JITFunction, jit
except ImportError:
    tl: Any = None  # type: ignore[no-redef]

    def jit(fn: Any) -> Any:
        """The function, undecorated."""
        return fn


__all__ = ["cdiv", "fields", "jit", "next_power_of_2", "tl", "wrap_triton"]


def fields(*span: int) -> list[Any]:
    """The places ``range(*span)`` in a tuple, as constants that kernels may name."""
    return [i if tl is None else tl.constexpr(i) for i in range(*span)]


def wrap_triton(kernel: Any) -> Any:
    """The kernel as graphs record it; an interpreted one, which torch 2.11 refuses, as it is."""
    return torch.library.wrap_triton(kernel) if isinstance(kernel, JITFunction) else kernel


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << max(n - 1, 0).bit_length()
