"""Other libraries and all our backends: same network, images, layers; each at its best batch.

Every peer runs in a process of its own, as its users run it, and once more with the allocator that
``combicam.tune_allocator()`` sets, which any program may set.
"""

from __future__ import annotations

import json
import pickle
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import libraries
from benchmarks.harness import RESULTS, Contender, Result, check_device, known, measure
from benchmarks.libraries import (
    AUTHORS,
    LIBRARIES,
    Explain,
    counterpart,
    heatmaps_of,
    library,
    typical_error,
)
from benchmarks.memory import peak_mib_of
from benchmarks.networks import CASES, Case, network
from combicam import Explainer, tune_allocator
from combicam.engine.explain.artifact_export import natural_noise
from combicam.export.trace.probe import LayerInfo

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
BACKENDS = ("eager", "torchscript", "onnxruntime", "openvino", "compile", "aoti")
PEERS = (*LIBRARIES, *(f"combicam, {backend}" for backend in BACKENDS))
ALLOCATORS = ("default", "tuned")
TOLERANCE = 1e-2  # between our backends
_CHECKED = 4
_WORSE = 0.9  # of the best speed so far: larger batches are not tried
_CALLS, _PATIENCE = 3, 30.0  # calls of a batch size, and seconds after which there is no other


@dataclass(frozen=True)
class PeersConfig:
    """Images per second and memory of this and other libraries, each at its best batch size.

    Args:
        cases: which networks.
        peers: which libraries and backends.
        device: ``cpu`` or ``cuda``.
        allocators: ``default``, ``tuned`` or both; on a GPU, ``default``.
        rounds: how often each is timed; medians are reported.
        smallest: batch that is tried.
        largest: batch that is tried.
        budget: seconds after which the present peer is ended and no other begun; rows without a
            speed.
        output: where the JSON goes; decoding of images is in no figure.
    """

    cases: tuple[str, ...] = ("resnet50", "efficientnet_b4")
    peers: tuple[str, ...] = PEERS
    device: str = "cpu"
    allocators: tuple[str, ...] = ALLOCATORS
    rounds: int = 5
    smallest: int = 1
    largest: int = 16
    budget: float = 1200.0
    output: Path = RESULTS / "peers-cpu.json"

    def __post_init__(self) -> None:
        known("peers", self.cases, CASES)
        known("peers", self.peers, PEERS)
        known("peers", self.allocators, ALLOCATORS)
        check_device("peers", self.device)


@dataclass(frozen=True)
class Setting:
    """What all peers share.

    Attributes:
        case: network, size, layers.
        model: float32, eval, on the device.
        layers: the target layers.
        device: where everything runs.
    """

    case: Case
    model: nn.Module
    layers: tuple[LayerInfo, ...]
    device: torch.device

    @classmethod
    def of(cls, name: str, device: str) -> Setting:
        """The setting of a case."""
        case, place = CASES[name], torch.device(device)
        model = network(case).to(place)
        layers = Explainer(model, case.size, layers=case.layers).layers
        return cls(case, model, layers, place)

    @property
    def names(self) -> list[str]:
        """Of the target layers."""
        return [info.name for info in self.layers]

    def images(self, count: int, seed: int = 2) -> Tensor:
        """Photos' statistics, normalised, on the device."""
        return natural_noise(count, self.case.size, seed=seed).to(self.device)


def explain_with(peer: str, setting: Setting) -> Explain:
    """What a peer's user would call: images -> heatmaps (or what has them)."""
    if peer.startswith("combicam, "):
        return Explainer(
            setting.model,
            setting.case.size,
            layers=setting.names,
            backend=peer.removeprefix("combicam, "),
            device=setting.device,
        )
    return library(peer, setting.model, setting.names, setting.case.size)


def error(peer: str, explain: Explain, setting: Setting) -> float:
    """Of the typical image, from ours under the peer's semantics; images one at a time."""
    images = setting.images(_CHECKED, seed=7)
    ours = counterpart(peer, setting.model, setting.names, setting.case.size)
    found = torch.cat([heatmaps_of(explain(image[None])) for image in images])
    return typical_error(found, ours(images))


def host_bytes(peer: str, setting: Setting) -> int:
    """Bytes an image that cross from the device, until heatmaps are on the host.

    pytorch-grad-cam copies activations and gradients of every layer, and computes on the host;
    the others return float32 heatmaps; runs of ours bring uint8 ones, a quarter of these.
    """
    h, w = setting.case.size
    if peer != "pytorch-grad-cam":
        return 4 * h * w
    return sum(2 * 4 * i.channels * i.height * i.width for i in setting.layers)


def best_batch(
    explain: Explain, setting: Setting, smallest: int, largest: int
) -> tuple[int, float]:
    """The batch size with the most images a second, and these: medians of a few warm calls.

    Larger batches are tried while they help, fit, and are expected to take seconds, not minutes.
    """
    best, seconds = (smallest, 0.0), 0.0
    for batch in (b for b in BATCHES if smallest <= b <= largest):
        images = setting.images(batch)
        try:
            seconds = _median_seconds(explain, images, setting.device)
        except torch.OutOfMemoryError:
            break
        speed = batch / seconds
        if speed > best[1]:
            best = (batch, speed)
        if speed < _WORSE * best[1] or 2 * seconds > _PATIENCE:
            break
    return best


def _median_seconds(explain: Explain, images: Tensor, device: torch.device) -> float:
    """Of warm calls: the first may compile and allocate. Fewer where they take long."""
    times: list[float] = []
    for _ in range(1 + _CALLS):
        _wait(device)
        start = time.perf_counter()
        explain(images)
        _wait(device)
        times.append(time.perf_counter() - start)
        if sum(times[1:]) > _PATIENCE:
            break
    return statistics.median(times[1:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peers(
    config: PeersConfig,
    say: Callable[[str], None],
    measured: Callable[[list[Result]], None] = lambda rows: None,
) -> list[Result]:
    """One process after the other; failures are rows, and ``measured`` gets all after each."""
    end = time.monotonic() + config.budget
    rows: list[Result] = []
    for case, peer, allocator in product(config.cases, config.peers, config.allocators):
        work = Work(peer, case, config, allocator)
        row = _in_process(work, end - time.monotonic())
        if row.error is None:  # memory that was freed before would not be seen
            again = replace(work, batch=row.params["batch"])
            memory = _in_process(again, end - time.monotonic())
            row.params["peak_mib"] = memory.params.get("peak_mib")
        say(f"  {case}, {peer}, {allocator}: {row.images_per_s or row.error}")
        rows.append(row)
        measured(rows)
    return rows


@dataclass(frozen=True)
class Work:
    """Of one process."""

    peer: str
    case: str
    config: PeersConfig
    allocator: str
    batch: int | None = None  # to measure the memory of; None to measure speed

    @property
    def params(self) -> dict[str, Any]:
        """Of its row."""
        return {"case": self.case, "allocator": self.allocator}


def _in_process(work: Work, seconds: float) -> Result:
    """A row, made in a process of its own."""
    if seconds <= 0:
        return Result(work.peer, work.params, error="not begun: the budget was spent")
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.peers"]
    try:
        done = subprocess.run(
            command, input=pickle.dumps(work), capture_output=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return Result(work.peer, work.params, error="not finished: the budget was spent")
    lines = [line for line in done.stdout.decode().splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        said = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        problem = f"{said[0] if said else 'it printed nothing'} (exit {done.returncode})"
        return Result(work.peer, work.params, error=problem)
    return Result(**json.loads(lines[-1]))


def measure_one(work: Work, say: Callable[[str], None]) -> Result:
    """Check, find the best batch, and time it; or the memory of a batch."""
    config = work.config
    if work.allocator == "tuned":
        tune_allocator()
    setting = Setting.of(work.case, config.device)
    if work.batch is not None:
        explain, images = explain_with(work.peer, setting), setting.images(work.batch)
        peak = peak_mib_of(lambda: (explain(images), explain(images)), setting.device)
        return Result(work.peer, work.params | {"peak_mib": peak})
    contender = _contender(work.peer, setting, config, say)
    (row,) = measure([contender], {}, config.rounds, say)
    row.params = work.params | {"batch": contender.images}
    if row.error is None:
        row.params["host_bytes"] = host_bytes(work.peer, setting)
    return row


def _contender(
    peer: str, setting: Setting, config: PeersConfig, say: Callable[[str], None]
) -> Contender:
    """Made and tuned now; what fails raises again when it is measured, and so becomes a row."""
    try:
        explain = explain_with(peer, setting)
        found = error(peer, explain, setting)
        # One photo at a time is how the authors' code works.
        limits = (1, 1) if peer == AUTHORS else (config.smallest, config.largest)
        batch, speed = best_batch(explain, setting, *limits)
    except Exception as failure:
        problem = failure

        def fail() -> Callable[[], Any]:
            raise problem

        return Contender(peer, fail, 1)
    say(f"  {peer}: batch {batch}, {speed:.2f} images/s")
    images = setting.images(batch)
    tolerance = libraries.TOLERANCE if peer in LIBRARIES else TOLERANCE
    return Contender(peer, lambda: lambda: explain(images), batch, lambda _: found, tolerance)


def _whole(number: float | None) -> str:
    return "" if number is None else f"{number:.0f}"


def peers_table(rows: list[Result]) -> str:
    """Markdown of one case: each peer's speed beside that of our best backend, by allocator."""
    by_peer: dict[str, dict[str, Result]] = {}
    best = dict.fromkeys(ALLOCATORS, 0.0)
    for r in rows:
        allocator = r.params.get("allocator", ALLOCATORS[0])  # earlier records know one
        by_peer.setdefault(r.name, {})[allocator] = r
        if r.name.startswith("combicam"):
            best[allocator] = max(best[allocator], r.images_per_s or 0)
    lines = [
        "| | images/s | ours is faster by | tuned allocator | ours by | batch | peak MiB "
        "| KB to the host | map difference |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, found in by_peer.items():
        cells = []
        for allocator in ALLOCATORS:
            r = found.get(allocator)
            speed = r.images_per_s if r else None
            cells += ["", ""] if not speed else [f"{speed:.2f}", f"{best[allocator] / speed:.1f}"]
        shown = next((r for r in found.values() if r.images_per_s), None)
        if shown is None:
            lines.append(f"| {name} | failed: {next(iter(found.values())).error} | | | | | | | |")
            continue
        lines.append(
            f"| {name} | {' | '.join(cells)} | {shown.params['batch']} "
            f"| {_whole(shown.params['peak_mib'])} | {shown.params['host_bytes'] / 1e3:.0f} "
            f"| {shown.max_abs_err:.0e} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    asked = pickle.load(sys.stdin.buffer)
    with redirect_stdout(sys.stderr):
        result = measure_one(asked, print)
    print(json.dumps(result.to_dict()))
