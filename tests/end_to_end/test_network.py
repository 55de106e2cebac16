"""A run is a matter of this machine: the kernel ends a process that opens an internet socket."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from combicam.demo.tour import write_postcards

# A seccomp filter, which sees the calls of native libraries, too.
GUARD = """
import ctypes, platform, struct

ARCH, SOCKET = {"x86_64": (0xC000003E, 41), "aarch64": (0xC00000B7, 198)}[platform.machine()]
LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06
KILL, ALLOW = 0x80000000, 0x7FFF0000
PROGRAM = [
    (LOAD, 0, 0, 4), (EQUAL, 0, 6, ARCH),       # another architecture: allow
    (LOAD, 0, 0, 0), (EQUAL, 0, 4, SOCKET),     # another call: allow
    (LOAD, 0, 0, 16), (EQUAL, 1, 0, 2), (EQUAL, 0, 1, 10),  # AF_INET, AF_INET6
    (RETURN, 0, 0, KILL), (RETURN, 0, 0, ALLOW),
]
code = b"".join(struct.pack("HBBI", *line) for line in PROGRAM)
lines = ctypes.create_string_buffer(code, len(code))
filter_ = struct.pack("HxxxxxxP", len(PROGRAM), ctypes.addressof(lines))
program = ctypes.create_string_buffer(filter_)
prctl = ctypes.CDLL(None, use_errno=True).prctl
assert prctl(38, 1, 0, 0, 0) == 0                                  # PR_SET_NO_NEW_PRIVS
assert prctl(22, 2, ctypes.byref(program), 0, 0) == 0, ctypes.get_errno()  # PR_SET_SECCOMP
"""


def guarded(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", GUARD + code], capture_output=True, text=True, check=False
    )


pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"),
    reason="needs seccomp",
)


def test_the_guard_sees_sockets_and_leaves_the_rest() -> None:
    if guarded("").returncode == 1:
        pytest.skip("needs seccomp")
    assert guarded("import socket; socket.socket(socket.AF_UNIX)").returncode == 0
    for family in ("AF_INET", "AF_INET6"):
        assert guarded(f"import socket; socket.socket(socket.{family})").returncode == -31  # SIGSYS
    assert guarded("import ctypes; ctypes.CDLL(None).socket(2, 1, 0)").returncode == -31


@pytest.mark.slow
def test_exporting_running_and_reporting_open_no_socket(tmp_path: Path) -> None:
    if guarded("").returncode == 1:
        pytest.skip("needs seccomp")
    write_postcards(tmp_path, 4, seed=500)
    done = guarded(
        f"""
from combicam.cli import main
model, run = {str(tmp_path / "m.onnx")!r}, {str(tmp_path / "run")!r}
main(["export", "-m", "demo", "--layers", "last", "-o", model])
main(["run", {str(tmp_path / "photos")!r}, "-o", run, "-m", model, "--no-progress"])
main(["report", run])
main(["convert", run, {str(tmp_path / "tars")!r}, "--photos"])
import time
time.sleep(2)  # what a thread of a library might send by and by
print("done")
"""
    )
    assert done.returncode == 0 and done.stdout.endswith("done\n"), done.stderr
