"""Compute as a model is written, whatever the caller's settings are."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from combicam.kernels.jit import on_device

_cudnn: Any = torch.backends.cudnn
_mkldnn: Any = torch.backends.mkldnn
# What torch lets round float32 to TF32 on CUDA.
_BACKENDS: tuple[Any, ...] = (torch.backends.cuda.matmul, _cudnn.conv, _cudnn.rnn)
# What may be set besides by torch's older switch, and what each takes its setting from.
_SET: tuple[Any, ...] = (*_BACKENDS, _mkldnn.matmul)
_PARENTS: tuple[Any, ...] = (torch.backends, _cudnn, _cudnn, _mkldnn)


@contextmanager
def plain_arithmetic(*devices: torch.device, tf32: bool = False) -> Iterator[None]:
    """While active, the caller's autocast is off, CUDA computes float32 as IEEE does, and cuDNN is
    deterministic.

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
                stack.enter_context(on_device(device))
                stack.enter_context(_settings.set("tf32" if tf32 else "ieee"))
        yield


class _PrecisionSettings:
    """Torch's settings, which are those of the process: kept while any thread needs them."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._active: dict[str, int] = {}  # precision -> how many need it; one at a time
        self._restore: Callable[[], None] = lambda: None
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
                self._restore = _restorer()
                try:
                    _apply(precision)
                except BaseException:
                    self._restore()
                    raise
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
                    self._restore()
                    self._changed.notify_all()


_settings = _PrecisionSettings()


def _apply(precision: str) -> None:
    # The older switches set the newer ones, which must not contradict them.
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    _cudnn.allow_tf32 = precision == "tf32"
    for backend in _BACKENDS:
        backend.fp32_precision = precision
    _cudnn.deterministic = True


def _restorer() -> Callable[[], None]:
    """A function that brings the present settings back."""
    newer = [backend.fp32_precision for backend in _SET]
    inherited = [
        value == parent.fp32_precision for value, parent in zip(newer, _PARENTS, strict=True)
    ]
    matmul = _read(torch.get_float32_matmul_precision, "highest" if newer[0] == "tf32" else "high")
    convolution = _read(lambda: _cudnn.allow_tf32, newer[1] != "tf32")
    deterministic = _cudnn.deterministic

    def restore() -> None:
        torch.set_float32_matmul_precision(matmul)
        _cudnn.allow_tf32 = convolution
        for backend, value, follows in zip(_SET, newer, inherited, strict=True):
            backend.fp32_precision = "none" if follows else value
        _cudnn.deterministic = deterministic

    return restore


def _read(read: Callable[[], Any], otherwise: Any) -> Any:
    """An older switch; torch reads none that a newer one contradicts, so it must be the other."""
    try:
        return read()
    except RuntimeError:
        return otherwise
