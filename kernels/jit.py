"""Import Triton if it is available; otherwise (macOS, Windows) no kernel is launched."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

try:
    import triton.language as tl
    from triton import JITFunction, jit
except ImportError:
    tl: Any = None  # type: ignore[no-redef]

    def jit(fn: Any = None, **_options: Any) -> Any:
        """Return the function undecorated."""
        return fn if fn is not None else lambda decorated: decorated


__all__ = ["cdiv", "fields", "jit", "launch", "next_power_of_2", "on_device", "tl", "wrap_triton"]

# What was launched -> the binary, launched by (number of programs) and (arguments, constants).
_binaries: dict[tuple[Any, ...], Any] = {}


def fields(*span: int) -> list[Any]:
    """The indices ``range(*span)`` of a tuple's fields, as constants for kernels."""
    return [i if tl is None else tl.constexpr(i) for i in range(*span)]


def wrap_triton(kernel: Any) -> Any:
    """Wrap a kernel so that graphs record it; not interpreted ones, which torch 2.11 refuses.

    Torch looks for calls of this name to tell which kernels an operator has. Where it runs one of
    its operators, and no graph is recorded, the kernel comes back as it is.
    """
    return torch.library.wrap_triton(kernel) if isinstance(kernel, JITFunction) else kernel


def launch(
    kernel: Any, programs: int, *arguments: Tensor | int, num_warps: int, **constants: Any
) -> None:
    """Launch a kernel on a one-dimensional grid, or record it in the graph that is being traced.

    Triton looks into all constants at every launch: tuples that describe 8 layers take 0.1 ms or
    more. What was launched before with equal constants, and arguments of the same kinds, is found
    here at once.

    Args:
        kernel: with its arguments first, then its constants; of :func:`wrap_triton` in operators
            that graphs see through.
        programs: size of the grid.
        arguments: tensors on the current device, and whole numbers.
        num_warps: of a program.
        constants: in the kernel's order.
    """
    if not isinstance(kernel, JITFunction):
        kernel[(programs,)](*arguments, **constants, num_warps=num_warps)
        return
    values = (*constants.values(), num_warps)
    key = (kernel, torch.cuda.current_device(), *map(_kind, arguments), *values)
    binary = _binaries.get(key)
    if binary is None:
        _binaries[key] = kernel[(programs,)](*arguments, **constants, num_warps=num_warps)
    else:
        binary[programs, 1, 1](*arguments, *constants.values())


def _kind(argument: Any) -> tuple[Any, ...]:
    """What Triton compiles a kernel for: types, and what is known of addresses and numbers."""
    if isinstance(argument, Tensor):
        return argument.dtype, argument.data_ptr() % 16 == 0
    return argument == 1, argument % 16 == 0, argument < 2**31


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
