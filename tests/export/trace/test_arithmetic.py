"""Which arithmetic CUDA uses, and on which device; these settings need no GPU."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from combicam.export.trace.arithmetic import plain_arithmetic

GPU = torch.device("cuda", 1)
MATMUL: Any = torch.backends.cuda.matmul
CUDNN: Any = torch.backends.cudnn


def settings() -> list[object]:
    found: list[object] = []
    older = (lambda: MATMUL.allow_tf32, lambda: CUDNN.allow_tf32)
    for read in (*older, torch.get_float32_matmul_precision):
        try:
            found.append(read())
        except RuntimeError:
            found.append("mixed")
    precisions = [b.fp32_precision for b in (MATMUL, CUDNN.conv, CUDNN.rnn)]
    return [*found, *precisions, CUDNN.deterministic]


@pytest.fixture(autouse=True)
def current(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[torch.device]]:
    """The devices that were made the current one; the settings are torch's own afterwards."""
    entered: list[torch.device] = []

    @contextmanager
    def device(chosen: torch.device) -> Iterator[None]:
        entered.append(chosen)
        yield

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    yield entered
    torch.set_float32_matmul_precision("highest")
    CUDNN.allow_tf32 = True


def newer() -> None:
    MATMUL.fp32_precision = CUDNN.conv.fp32_precision = "tf32"


def older() -> None:
    MATMUL.allow_tf32 = CUDNN.allow_tf32 = True


def medium() -> None:
    torch.set_float32_matmul_precision("medium")


@pytest.mark.parametrize("callers", [lambda: None, older, newer, medium])
@pytest.mark.parametrize("tf32", [False, True])
def test_float32_is_what_was_asked_for(
    callers: Callable[[], None], tf32: bool, current: list[torch.device]
) -> None:
    callers()
    before = settings()
    with plain_arithmetic(torch.device("cpu"), GPU, tf32=tf32):
        precision = "high" if tf32 else "highest"
        assert settings() == [tf32, tf32, precision, *["tf32" if tf32 else "ieee"] * 3, True]
        with plain_arithmetic(GPU, tf32=not tf32):  # the outermost decides
            assert settings()[:2] == [tf32, tf32]
    assert settings() == before
    assert set(current) == {GPU}


def test_what_follows_a_general_setting_follows_it_afterwards() -> None:
    general: Any = torch.backends
    try:
        general.fp32_precision = "ieee"
        before = settings()
        with plain_arithmetic(GPU):
            pass
        assert settings() == before
        general.fp32_precision = "tf32"
        assert MATMUL.fp32_precision == "tf32"
    finally:
        general.fp32_precision = "none"


def test_a_cpu_changes_nothing(current: list[torch.device]) -> None:
    before = settings()
    with plain_arithmetic(torch.device("cpu")):
        assert settings() == before
    assert not current


def test_threads_do_not_take_each_others_settings() -> None:
    """One that ends leaves the other's; one that needs the other precision waits."""
    before, seen = settings(), []
    first, done = threading.Event(), threading.Event()

    def compute(tf32: bool, until: threading.Event | None) -> None:
        with plain_arithmetic(GPU, tf32=tf32):
            first.set()
            if until is not None:
                assert until.wait(10)
            seen.append((tf32, settings()[1]))

    long = threading.Thread(target=compute, args=(False, done))
    long.start()
    assert first.wait(10)
    compute(False, None)
    other = threading.Thread(target=compute, args=(True, None))
    other.start()
    other.join(0.2)
    assert other.is_alive()
    done.set()
    long.join(10)
    other.join(10)
    assert seen == [(False, False), (False, False), (True, True)]
    assert settings() == before
