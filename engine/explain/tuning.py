"""Measure which backend, batch size and streams explain images fastest on this machine."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, Generic, Protocol, Self, TypeVar

import torch

from combicam.engine.explain.artifact_verify import TOLERANCES
from combicam.engine.explain.backends import CPU
from combicam.engine.explain.explainer import Explainer
from combicam.engine.explain.explanation import Explanation
from combicam.engine.explain.sessions import ArtifactSession
from combicam.engine.explain.streams import shared_cores, streams
from combicam.errors import first_line
from combicam.export.formats.artifact import artifact_format
from combicam.export.spec import FORWARD_METHODS

log = logging.getLogger(__name__)

# Images at once that are tried, by the kind of device, and the number that is tried first.
SIZES = {"cpu": (1, 2, 4, 8, 16, 32), "cuda": (32, 64, 128, 256)}
_FIRST = {"cpu": 4, "cuda": 128}
# Work that the present backend finishes sooner is not worth the half minute that measuring takes.
SHORT_S = 180.0
# A single call may take this many times too long or too short.
_DOUBT = 3.0
# Measuring may take this long, or this share of the predicted work, whichever is more.
_LEAST_S, _SHARE = 20.0, 0.03
# A measurement, and what torch.compile takes for a node of a graph.
_SAMPLE_S, _COMPILE_NODE_S = 0.4, 0.03
# Not tried where the other one works, which runs the same file, faster wherever measured.
_RUNS_AS_WELL = {"onnxruntime": "openvino"}
# A larger batch, or fewer threads, must gain this much, and may lose that.
_GAIN, _LOSS = 1.03, 1.02
# This many times slower than the best is not measured twice.
_HOPELESS = 1.5


class Tunable(Protocol):
    """An explainer whose backend can be changed."""

    def with_backend(self, backend: str) -> Self:
        """The same in another backend."""


T = TypeVar("T", bound=Tunable)


@dataclass(frozen=True)
class Tuning:
    """A backend, batch size and streams.

    Attributes:
        backend: of the explainer.
        batch_size: images explained at once.
        threads: of torch and the runtimes, on a CPU, which the streams share.
        images_per_s: ``BACKEND batch SIZE``, ``STREAMS x BACKEND batch SIZE`` -> images explained
            a second; what was measured.
        seconds: that measuring took.
        streams: batches explained at the same time.
    """

    backend: str
    batch_size: int
    threads: int
    images_per_s: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    streams: int = 1

    @property
    def usual(self) -> float:
        """Images a second of the backend that is taken without measuring."""
        return next(iter(self.images_per_s.values()), 0.0)

    def __str__(self) -> str:
        chosen, *others = sorted(
            self.images_per_s.items(),
            key=lambda item: item[0] != _label(self.backend, self.batch_size, self.streams),
        )
        compared = ", ".join(f"{name} {speed:.3g}" for name, speed in others)
        at_once = f", {self.streams} at the same time" if self.streams > 1 else ""
        return (
            f"{self.backend} in batches of {self.batch_size}{at_once}: {chosen[1]:.3g} images/s"
            + (f" ({compared})" if compared else "")
        )


def _label(backend: str, batch_size: int, count: int) -> str:
    """What was measured, for :attr:`Tuning.images_per_s`."""
    return f"{count} x " * (count > 1) + f"{backend} batch {batch_size}"


def candidates(explainer: Explainer) -> tuple[str, ...]:
    """Other backends that this machine has for an explainer, the most promising first."""
    session = explainer.session
    has_openvino = importlib.util.find_spec("openvino") is not None
    on_cpu = explainer.device.type == "cpu"
    if isinstance(session, ArtifactSession):
        runtimes = artifact_format(session.path).runtimes
        known = [name for name in runtimes if name != "openvino" or (has_openvino and on_cpu)]
        return tuple(known[1:])
    if explainer.spec.method in FORWARD_METHODS or not explainer.preprocess.has_one_size:
        return ()
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    compiled = ("compile",) if compiler or not on_cpu else ()
    if not on_cpu:
        return compiled
    return (*(("openvino",) if has_openvino else ()), "onnxruntime", "torchscript", *compiled)


class Tuner(Generic[T]):
    """Measures an explainer in several backends and batch sizes, for a limited time.

    Args:
        explainer: in its present backend.
        backend: the name of that.
        nodes: of its graph, which tell how long compiling takes.
        explain: from an explainer and a number n to the explanation of the same n images.
        images: how many are left to explain.
        tolerance: of :func:`difference`.
        device: that explains. On a GPU the batch size is chosen first: it decides more, and
            ``compile`` then compiles once. On a CPU the streams are, in the present backend, as
            they decide most.
        at_once: streams; None to measure them.
    """

    def __init__(
        self,
        explainer: T,
        backend: str,
        nodes: int,
        explain: Callable[[Any, int], Explanation],
        images: int,
        tolerance: float = TOLERANCES["float32"],
        device: torch.device = CPU,
        at_once: int | None = None,
    ) -> None:
        self._at_once = at_once
        self._explain = explain
        self._images = images
        self._nodes = nodes
        self._tolerance = tolerance
        self._start = perf_counter()
        self._limit_s = _LEAST_S
        self._speeds: dict[str, float] = {}
        self._device = device
        self._best: tuple[float, T, str, int] = (0.0, explainer, backend, _FIRST[device.type])

    def tune(self, backends: Sequence[str], sizes: Sequence[int]) -> tuple[T, Tuning] | None:
        """The fastest explainer, and how it was found; None if the work is too short.

        A backend must give the present one's classes and heatmaps, within the tolerance for files.

        Args:
            backends: to try beside the present one.
            sizes: batch sizes to try; a single one is fixed.
        """
        threads = torch.get_num_threads()
        first = max([n for n in sizes if n <= self._best[3]], default=sizes[0])
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        before = _used(self._device)
        _, explainer, backend, _ = self._best
        try:
            expected = self._explain(explainer, first)
            start = perf_counter()
            self._explain(explainer, first).heatmaps.cpu()
            once = perf_counter() - start
            if self._images * once / first < SHORT_S / _DOUBT:
                return None
            speed = self._measured(explainer, backend, first)
        except torch.OutOfMemoryError:  # runs halve their batches
            return None
        predicted = self._images / speed
        if predicted < SHORT_S:
            return None
        self._limit_s = max(_LEAST_S, _SHARE * predicted)
        self._best = (speed, explainer, backend, first)
        per_image = max(0, _used(self._device) - before) / first
        on_gpu = self._device.type == "cuda"
        count = 1 if on_gpu else self._share_cores(per_image)
        with shared_cores(count):
            if not on_gpu:
                self._try_all(explainer, backends, first, expected)
            self._grow([n for n in sizes if n > first], per_image)
            if self._best[3] == first:
                self._grow([n for n in reversed(sizes) if n < first], per_image)
            if on_gpu:
                size = self._best[3]
                self._try_all(explainer, backends, size, self._explain(explainer, size))
        if not on_gpu and self._half_is_enough(count):
            threads, count = threads // 2, max(1, count // 2)
        _, explainer, backend, size = self._best
        measured = {name: round(speed, 2) for name, speed in self._speeds.items()}
        return explainer, Tuning(
            backend, size, threads, measured, round(self._elapsed, 1), streams=count
        )

    @property
    def _elapsed(self) -> float:
        return perf_counter() - self._start

    def _share_cores(self, per_image: float) -> int:
        """How many streams are fastest, from one for each thread on, in the present backend."""
        speed, explainer, backend, size = self._best
        threads, chosen = torch.get_num_threads(), 1
        halves = (threads >> i for i in range(threads.bit_length() - 1))
        for count in halves if self._at_once is None else (self._at_once,):
            is_named = count == self._at_once
            if count == 1 or self._elapsed + 3 * size * count / speed > self._limit_s:
                break
            if not is_named and not _fits(count * size * per_image):
                continue
            with shared_cores(count):
                other = explainer.with_backend(backend)
                found = self._measured(other, backend, size)
            if not is_named and found < self._best[0] * _GAIN:
                break
            self._best, chosen = (found, other, backend, size), count
        return chosen if self._at_once is None else self._at_once

    def _try_all(
        self, explainer: T, names: Sequence[str], size: int, expected: Explanation
    ) -> None:
        for name in names:
            better = f" {_RUNS_AS_WELL.get(name)} batch"
            if not any(better in f" {measured}" for measured in self._speeds):
                self._try(explainer, name, size, expected)

    def _try(self, explainer: T, name: str, size: int, expected: Explanation) -> None:
        needed = _COMPILE_NODE_S * self._nodes if name == "compile" else 0
        if self._elapsed + needed > self._limit_s:
            log.info("%s is not tried: there is no time left", name)
            return
        other = in_backend(explainer, name, self._explain, self._tolerance, size, expected)
        if other is None:
            return
        speed = self._measured(other, name, size)
        if speed > self._best[0]:
            self._best = (speed, other, name, size)

    def _grow(self, sizes: Sequence[int], per_image: float) -> None:
        """Go on to other batch sizes while they gain, and fit into memory."""
        for size in sizes:
            speed, explainer, backend, present = self._best
            time_needed = (
                3 * size * streams() / speed
                + (backend == "compile") * _COMPILE_NODE_S * self._nodes
            )
            too_long = self._elapsed + time_needed > self._limit_s
            if too_long or not _fits(streams() * size * per_image, self._device):
                return
            try:
                self._explain(explainer, size)
                found = self._measured(explainer, backend, size)
            except torch.OutOfMemoryError:
                return
            if found < speed * (_GAIN if size > present else 1 / _LOSS):
                return
            self._best = (found, explainer, backend, size)

    def _half_is_enough(self, count: int) -> bool:
        """Whether half of the threads and streams are as fast; decoding gets the others."""
        speed, explainer, backend, size = self._best
        threads = torch.get_num_threads()
        needed = 4 * count * size / speed
        if threads < 4 or backend == "compile" or self._elapsed + needed > self._limit_s:
            return False
        torch.set_num_threads(threads // 2)
        try:
            with shared_cores(max(1, count // 2)):
                other = explainer.with_backend(backend)
                self._explain(other, size)
                found = self._measured(other, f"{backend} on {threads // 2} threads", size)
        finally:
            torch.set_num_threads(threads)
        if found * _LOSS < speed:
            return False
        self._best = (found, other, backend, size)
        return True

    def _measured(self, explainer: T, name: str, size: int) -> float:
        """Images a second, at best, of all streams."""
        best, total, calls, count = float("inf"), 0.0, 0, streams()

        def call(_: object = None) -> None:
            self._explain(explainer, size).heatmaps.cpu()

        with ThreadPoolExecutor(count) as pool:
            while total < _SAMPLE_S or calls < 2:
                start = perf_counter()
                if count == 1:
                    call()
                else:
                    list(pool.map(call, range(count)))
                taken = perf_counter() - start
                best, total, calls = min(best, taken), total + taken, calls + 1
                if best * self._best[0] > _HOPELESS * size * count:
                    break
        self._speeds[_label(name, size, count)] = size * count / best
        return size * count / best


def in_backend(
    explainer: T,
    backend: str,
    explain: Callable[[Any, int], Explanation],
    tolerance: float,
    size: int | None = None,
    expected: Explanation | None = None,
) -> T | None:
    """An explainer in another backend; None if that fails, or explains otherwise.

    Args:
        explainer: in its present backend.
        backend: the name of the other.
        explain: see :class:`Tuner`.
        tolerance: of :func:`difference`.
        size: images that are compared; None for a few.
        expected: their present explanation, if it is known.
    """
    size = _FIRST["cpu"] if size is None else size
    try:
        other = explainer.with_backend(backend)
        found = explain(other, size)
    except Exception as error:  # whatever it is, the present backend goes on
        log.info("%s cannot be used: %s", backend, first_line(error))
        return None
    off = difference(found, expected or explain(explainer, size))
    if off <= tolerance:
        return other
    log.info("%s is not used: its heatmaps differ by %.2g", backend, off)
    return None


def difference(found: Explanation, expected: Explanation) -> float:
    """Of heatmaps: the worst pixel of the median explanation of the same classes."""
    same = found.targets.cpu() == expected.targets.cpu()
    if same.float().mean() < 0.5:
        return float("inf")
    gaps = (found.heatmaps.cpu()[same] - expected.heatmaps.cpu()[same]).abs()
    return float(gaps.flatten(1).amax(1).median())


def _used(device: torch.device) -> int:
    """Bytes of memory that the process has had on a GPU, or has on the CPU; 0 if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def _fits(needed: float, device: torch.device = CPU) -> bool:
    """Whether this much more memory is available, with as much again to spare."""
    if device.type == "cuda":
        return 2 * needed < torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return True
    free = next((int(n.split()[1]) for n in lines if n.startswith("MemAvailable")), 0) * 1024
    return not free or 2 * needed < free
