"""Import Triton if it is available; otherwise (macOS, Windows) no kernel is launched."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

try:
    import triton.language as tl
    from triton import JITFunction, jit
except ImportError:
    tl: Any = None  # type: ignore[no-redef]

    def jit(fn: Any) -> Any:
        """Return the function undecorated."""
        return fn


__all__ = ["cdiv", "fields", "jit", "next_power_of_2", "on_device", "tl", "wrap_triton"]


def fields(*span: int) -> list[Any]:
    """The indices ``range(*span)`` of a tuple's fields, as constants for kernels."""
    return [i if tl is None else tl.constexpr(i) for i in range(*span)]


def wrap_triton(kernel: Any) -> Any:
    """Wrap a kernel so that graphs record it; not interpreted ones, which torch 2.11 refuses."""
    return torch.library.wrap_triton(kernel) if isinstance(kernel, JITFunction) else kernel


def on_device(device: torch.device) -> AbstractContextManager[Any]:
    """While active, a GPU is the current one, on which Triton launches; not a pretended one."""
    is_real = device.type == "cuda" and torch.cuda.is_initialized()
    return torch.cuda.device(device) if is_real else nullcontext()


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << max(n - 1, 0).bit_length()
