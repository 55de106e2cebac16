"""Import Triton if it is available; otherwise (macOS, Windows) no kernel is launched."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
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


__all__ = [
    "LaunchPlan",
    "cdiv",
    "fields",
    "jit",
    "launch",
    "next_power_of_2",
    "on_device",
    "tl",
    "wrap_triton",
]


def fields(*span: int) -> list[Any]:
    """The indices ``range(*span)`` of a tuple's fields, as constants for kernels."""
    return [i if tl is None else tl.constexpr(i) for i in range(*span)]


def wrap_triton(kernel: Any) -> Any:
    """Wrap a kernel so that graphs record it; not interpreted ones, which torch 2.11 refuses.

    Torch looks for calls of this name to tell which kernels an operator has. Where it runs one of
    its operators, and no graph is recorded, the kernel comes back as it is.
    """
    return torch.library.wrap_triton(kernel) if isinstance(kernel, JITFunction) else kernel


@dataclass(frozen=True, eq=False)
class LaunchPlan:
    """What does not change from one launch of a kernel to the next.

    Triton looks into all constants at every launch: tuples that describe 8 layers take 0.1 ms or
    more. Whoever keeps a plan launches what was compiled for it without another look.

    Attributes:
        programs: for one of what is counted at a launch: images, maps, or blocks of values.
        constants: of the kernel, in its order.
        num_warps: of a program.
        pointers: the kernel's, where it may be given fewer tensors, since it reads no others.
        binaries: what was launched by this plan -> the kernel as compiled.
    """

    programs: int
    constants: dict[str, Any]
    num_warps: int = 4
    pointers: int = 0
    binaries: dict[tuple[Any, ...], Any] = field(default_factory=dict, repr=False)


def launch(
    kernel: Any, plan: LaunchPlan, count: int, tensors: Sequence[Tensor], *numbers: int
) -> None:
    """Launch a kernel on a one-dimensional grid, or record it in the graph that is being traced.

    Args:
        kernel: with its tensors first, then numbers, then constants; of :func:`wrap_triton` in
            operators that graphs see through.
        plan: for this kernel.
        count: by which the plan's programs are multiplied.
        tensors: on the current device; the first one stands for those up to ``plan.pointers``.
        numbers: whole ones.
    """
    programs = count * plan.programs
    arguments = [*tensors, *[tensors[0]] * (plan.pointers - len(tensors)), *numbers]
    if not isinstance(kernel, JITFunction):
        kernel[(programs,)](*arguments, **plan.constants, num_warps=plan.num_warps)
        return
    # What Triton compiles a kernel for: types, and what is known of addresses and numbers.
    key = (
        tensors[0].get_device(),
        *[x.dtype for x in tensors],
        *[x.data_ptr() % 16 == 0 for x in tensors],
        *[(n == 1, n % 16 == 0, n < 2**31) for n in numbers],
    )
    binary = plan.binaries.get(key)
    if binary is None or torch.version.hip:  # AMD's backend looks at the memory behind tensors, too
        plan.binaries[key] = kernel[(programs,)](
            *arguments, **plan.constants, num_warps=plan.num_warps
        )
    else:
        binary[programs, 1, 1](*arguments, *plan.constants.values())


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
