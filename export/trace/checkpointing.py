"""Run a forward pass as written: without autocast and without recomputation."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.utils.checkpoint as checkpointing

from combicam.export.trace.arithmetic import plain_arithmetic

_lock = threading.RLock()


@contextmanager
def plain_forward(device: torch.device) -> Iterator[None]:
    """While active, arithmetic is plain, and ``torch.utils.checkpoint`` saves no memory.

    Checkpointed blocks, reentrant or not, give the same values as without; but the backward of
    a reentrant one cannot be traced or asked for single gradients.
    """

    def run(function: Any, _preserve: bool, *args: Any) -> Any:
        return function(*args)

    def nothing(*_args: Any, **_kwargs: Any) -> Iterator[None]:
        yield

    with (
        _lock,
        plain_arithmetic(device),
        mock.patch.object(checkpointing.CheckpointFunction, "apply", staticmethod(run)),
        mock.patch.object(checkpointing, "_checkpoint_without_reentrant_generator", nothing),
    ):
        yield
