"""Processes that prepare at once and are timed one after the other."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

# A prefix of two files: the process makes PREFIX.ready, and times once PREFIX.go is there.
VARIABLE = "COMBICAM_TURN"
_POLL = 0.05
_DIES_S = 10.0  # until a process that is killed has ended


def wait_for_turn() -> None:
    """Return when nothing else runs; at once in a process that was started for itself."""
    prefix = os.environ.get(VARIABLE)
    if prefix is None:
        return
    Path(f"{prefix}.ready").touch()
    while not Path(f"{prefix}.go").exists():
        time.sleep(_POLL)


@dataclass(frozen=True)
class Group:
    """One process.

    Attributes:
        name: of its files: NAME.log, and NAME.json where it writes a record.
        command: after ``python -m``; ``{output}`` is the folder of the files.
        prepare_s: seconds from the start of its wave until it must be ready.
        timed_s: seconds that its turn may take.
    """

    name: str
    command: tuple[str, ...]
    prepare_s: float = 200.0
    timed_s: float = 60.0


@dataclass
class Outcome:
    """How one process ended: ``ended`` (then ``code``), ``late`` or ``stopped`` in its turn."""

    name: str
    how: str = "running"
    code: int | None = None
    prepared_s: float | None = None
    timed_s: float | None = None
    command: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, object]:
        """JSON-ready."""
        return asdict(self)


class _Running:
    def __init__(self, group: Group, output: Path, environment: dict[str, str]) -> None:
        self.group, self.prefix = group, output / group.name
        command = [
            sys.executable,
            "-X",
            "faulthandler",
            "-m",
            *(part.format(output=output) for part in group.command),
        ]
        self.outcome = Outcome(group.name, command=command[1:])
        with Path(f"{self.prefix}.log").open("w") as log:
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment, VARIABLE: str(self.prefix)},
                start_new_session=True,
            )

    def ready(self) -> bool:
        return Path(f"{self.prefix}.ready").exists()

    def ended(self) -> bool:
        return self.process.poll() is not None

    def close(self, how: str) -> None:
        """Kill what is left of it, children included, and tidy up."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            how = "ended"
        self.outcome.how = how
        with suppress(subprocess.TimeoutExpired):  # it hangs in the driver, and is left there
            self.outcome.code = self.process.wait(_DIES_S)
        for suffix in (".ready", ".go"):
            Path(f"{self.prefix}{suffix}").unlink(missing_ok=True)


def run_wave(groups: list[Group], output: Path, end: float, **environment: str) -> list[Outcome]:
    """Start all, wait until each is ready, has ended or is late; then give each its turn.

    Args:
        groups: started at once.
        output: folder of their files.
        end: no process lives longer, by ``time.monotonic()``.
        environment: variables that they get.

    Returns:
        One outcome a group. A process that crashes, hangs or is killed ends itself alone.
    """
    started = time.monotonic()
    running = [_Running(group, output, environment) for group in groups]
    waiting = list(running)
    while waiting:
        passed = time.monotonic() - started
        for one in list(waiting):
            if one.ended() or one.ready():
                one.outcome.prepared_s = passed
            elif passed > one.group.prepare_s or time.monotonic() > end:
                one.close("late")
            else:
                continue
            waiting.remove(one)
        time.sleep(_POLL)
    for one in running:
        if one.outcome.how != "running":
            continue
        begun = time.monotonic()
        Path(f"{one.prefix}.go").touch()
        until = min(end, begun + one.group.timed_s)
        while not one.ended() and time.monotonic() < until:
            time.sleep(_POLL)
        one.outcome.timed_s = time.monotonic() - begun
        one.close("ended" if one.ended() else "stopped")
    return [one.outcome for one in running]
