"""Freed memory stays in the process, so that the next tensor costs no page faults."""

import platform
import subprocess
import sys

import pytest

from combicam.allocator import tune_allocator

FAULTS = """
import resource, sys, torch
from combicam import tune_allocator
if sys.argv[1] == "tuned":
    assert tune_allocator()
def work():
    return [torch.ones(40_000_000 // 4) for _ in range(4)]
for _ in range(5):
    work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.long
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is tuned")
def test_large_blocks_are_not_faulted_in_again() -> None:
    def faults(how: str) -> int:
        command = [sys.executable, "-c", FAULTS, how]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    assert (
        faults("tuned") < 1_000 < 100_000 < faults("plain")
    )  # 195,000 pages: more than 32 MB is always mapped


def test_another_libc_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not tune_allocator()
