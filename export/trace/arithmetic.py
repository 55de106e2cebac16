"""Compute as a model is written, whatever the caller's settings are."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

# What torch lets round float32 to TF32 on CUDA, in both of its interfaces.
_BACKENDS = (
    torch.backends.cuda.matmul,
    torch.backends.cudnn.conv,  # type: ignore[attr-defined]
    torch.backends.cudnn.rnn,  # type: ignore[attr-defined]
)
_SWITCHES = (torch.backends.cuda.matmul, torch.backends.cudnn)


@contextmanager
def plain_arithmetic(*devices: torch.device, tf32: bool = False) -> Iterator[None]:
    """While active, the caller's autocast is off, and CUDA computes float32 as IEEE does, the same
    bytes in every call.

    Args:
        devices: of what is computed; a CUDA device becomes the current one of this thread, on
            which Triton launches.
        tf32: round the inputs of float32 convolutions and products to TF32 (10 bits of mantissa);
            the outermost of several decides.
    """
    with ExitStack() as stack:
        for kind in {device.type for device in devices}:
            stack.enter_context(torch.autocast(kind, enabled=False))
        for device in devices:
            if device.type == "cuda":
                stack.enter_context(torch.cuda.device(device))
                stack.enter_context(_float32.set("tf32" if tf32 else "ieee"))
        yield


class _Float32:
    """Torch's settings, which are those of the process: kept while any thread needs them."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._active: dict[str, int] = {}  # precision -> how many need it; one at a time
        self._callers: tuple[list[bool], list[str]] = ([], [])
        self._deterministic = False  # the caller's
        self._thread = threading.local()

    @contextmanager
    def set(self, precision: str) -> Iterator[None]:
        """Set ``ieee`` or ``tf32``; waits while another thread needs the other one."""
        if getattr(self._thread, "has_set", False):
            yield
            return
        with self._changed:
            self._changed.wait_for(lambda: set(self._active) <= {precision})
            if not self._active:
                self._callers = _legacy(), [b.fp32_precision for b in _BACKENDS]
                self._deterministic = torch.backends.cudnn.deterministic
                torch.backends.cudnn.deterministic = True
                _apply([precision == "tf32"] * len(_SWITCHES), [precision] * len(_BACKENDS))
            self._active[precision] = self._active.get(precision, 0) + 1
        self._thread.has_set = True
        try:
            yield
        finally:
            self._thread.has_set = False
            with self._changed:
                self._active[precision] -= 1
                if not self._active[precision]:
                    self._active.clear()
                    _apply(*self._callers)
                    torch.backends.cudnn.deterministic = self._deterministic
                    self._changed.notify_all()


_float32 = _Float32()


def _legacy() -> list[bool]:
    """``allow_tf32`` of both switches, which cannot be read where the newer ones differ from it."""
    found = []
    for switch, newer in zip(_SWITCHES, _BACKENDS, strict=False):
        try:
            found.append(bool(switch.allow_tf32))
        except RuntimeError:
            found.append(newer.fp32_precision != "tf32")
    return found


def _apply(legacy: list[bool], precisions: list[str]) -> None:
    for switch, value in zip(_SWITCHES, legacy, strict=True):
        switch.allow_tf32 = value
    for backend, precision in zip(_BACKENDS, precisions, strict=True):
        backend.fp32_precision = precision
