"""Images a second and memory against batch, number of layers, image size and number of targets."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.graph import BASELINE, ort_forward, torch_forward
from benchmarks.harness import RESULTS, Contender, Result, check_device, known, measure
from benchmarks.libraries import AUTHORS, library
from benchmarks.memory import peak_mib_of
from benchmarks.networks import CASES, Case, network
from combicam import Explainer
from combicam.engine.explain.artifact_export import natural_noise
from combicam.export.trace.layers import select_layers
from combicam.export.trace.probe import probe

EAGER = "forward, torch eager"
LATE = "all"  # contenders of a point that was not begun
# The network of every axis, its images per call where that is not the axis, and the values.
AXES: dict[str, tuple[str, int, tuple[int, ...]]] = {
    "batch": ("resnet50", 0, (1, 2, 4, 8, 16, 32, 64, 128, 256)),
    "layers": ("efficientnet_b4", 2, (1, 2, 4, 8, 16, 32)),
    "size": ("resnet50", 4, (96, 160, 224, 320, 448)),
    "targets": ("resnet50", 4, (1, 2, 4, 8)),
}
Say = Callable[[str], None]


@dataclass(frozen=True)
class ScalingConfig:
    """How speed and memory grow; the forward alone, the floor, stands beside.

    Args:
        axes: which of batch, layers (the deepest ones), size and targets.
        device: ``cpu`` or ``cuda``.
        backends: of ours; none for eager and onnxruntime on a CPU, eager on a GPU.
        values: only these values of every axis; none for all of them.
        largest: batch that is tried.
        authors: also one forward and backward per layer, on the axis of layers, one image a call.
        rounds: how often everything is timed at each point, in turn; medians are reported.
        budget: seconds after which no further point is begun; it is a row without a speed.
        resume: keep the points that the record has, measure the others.
        output: where the JSON goes, default scaling-DEVICE.json; decoding is in no figure.
    """

    axes: tuple[str, ...] = tuple(AXES)
    device: str = "cpu"
    backends: tuple[str, ...] = ()
    values: tuple[int, ...] = ()
    largest: int = 16
    authors: bool = True
    rounds: int = 3
    budget: float = 1500.0
    resume: bool = False
    output: Path | None = None

    def __post_init__(self) -> None:
        known("scaling", self.axes, AXES)
        check_device("scaling", self.device)

    @property
    def record(self) -> Path:
        """Where the JSON goes."""
        return self.output or RESULTS / f"scaling-{self.device}.json"

    @property
    def explainers(self) -> tuple[str, ...]:
        """Which of ours."""
        default = ("eager", "onnxruntime") if self.device == "cpu" else ("eager",)
        return self.backends or default


@dataclass(frozen=True)
class Point:
    """One place on one axis.

    Attributes:
        axis: which of ``AXES``.
        value: there.
        case: the network, at the point's size.
        batch: images per call.
        layers: the deepest so many of the blocks; None for the case's own layers.
        targets: classes explained per image.
    """

    axis: str
    value: int
    case: Case
    batch: int
    layers: int | None = None
    targets: int = 1

    @classmethod
    def on(cls, axis: str, value: int) -> Point:
        """The axis's network with one thing changed."""
        name, batch, _ = AXES[axis]
        point = cls(axis, value, CASES[name], batch)
        if axis == "batch":
            return replace(point, batch=value)
        if axis == "size":
            return replace(point, case=replace(point.case, size=(value, value)))
        return replace(point, **{axis: value})

    @property
    def params(self) -> dict[str, Any]:
        """Of its rows."""
        return {
            "axis": self.axis,
            "value": self.value,
            "case": self.case.name,
            "size": self.case.size,
            "batch": self.batch,
            "targets": self.targets,
        }


def points(config: ScalingConfig) -> list[Point]:
    """All of them; the axes take turns, so that a short budget leaves each of them a curve."""
    lines = [
        [
            Point.on(axis, value)
            for value in AXES[axis][2]
            if (not config.values or value in config.values)
            and (axis != "batch" or value <= config.largest)
        ]
        for axis in config.axes
    ]
    return [point for turn in zip_longest(*lines) for point in turn if point is not None]


def scaling(config: ScalingConfig, say: Say) -> list[Result]:
    """Time every point's contenders in turn; memory is that of the first call."""
    end = time.monotonic() + config.budget
    rows = _recorded(config.record) if config.resume else []
    known = {(row.params["axis"], row.params["value"]) for row in rows}
    for point in points(config):
        if (point.axis, point.value) in known:
            continue
        if time.monotonic() > end:
            late = f"not begun: budget {config.budget:.0f} s"
            rows.append(Result(LATE, point.params, error=late))
            continue
        say(f"{point.axis} {point.value}")
        peaks: dict[str, float] = {}
        found = measure(_contenders(point, config, peaks), point.params, config.rounds, say)
        for row in found:
            row.params = row.params | {"peak_mib": peaks.get(row.name)}
        rows += found
    return rows


def _recorded(path: Path) -> list[Result]:
    """The rows of points that were begun."""
    if not path.exists():
        return []
    rows = [Result(**case) for case in json.loads(path.read_text(encoding="utf-8"))["cases"]]
    return [row for row in rows if row.name != LATE]


def _contenders(
    point: Point, config: ScalingConfig, peaks: dict[str, float]
) -> Iterator[Contender]:
    """The floor, then ours on every backend; each leaves its first call's memory in ``peaks``."""
    device = torch.device(config.device)
    model = _network(point.case, device)
    images = natural_noise(point.batch, point.case.size, seed=2).to(device)

    def contender(name: str, make: Callable[[], Callable[[], Any]]) -> Contender:
        def prepare() -> Callable[[], Any]:
            call = make()
            peaks[name] = peak_mib_of(call, device)
            return call

        return Contender(name, prepare, point.batch)

    yield contender(EAGER, lambda: torch_forward(model, images))
    if device.type == "cpu":
        yield contender(BASELINE, lambda: ort_forward(model, images))
    for backend in config.explainers:
        yield contender(f"combicam, {backend}", partial(_ours, point, model, images, backend))
    if config.authors and point.axis == "layers":
        explain = library(AUTHORS, model, _layers(point, model), point.case.size)
        yield replace(contender(AUTHORS, lambda: partial(explain, images[:1])), images=1)


def _ours(point: Point, model: nn.Module, images: Tensor, backend: str) -> Callable[[], Any]:
    explainer = Explainer(
        model,
        point.case.size,
        layers=_layers(point, model),
        targets=point.targets,
        backend=backend,
        device=images.device,
    )
    if backend == "compile":
        explainer(images)  # compiled at its first call
    return partial(explainer, images)


def _layers(point: Point, model: nn.Module) -> list[str]:
    names = _names(point.case, model)
    return names if point.layers is None else names[-point.layers :]


@lru_cache(maxsize=4)
def _network(case: Case, device: torch.device) -> nn.Module:
    return network(case).to(device)


@lru_cache(maxsize=4)
def _names(case: Case, model: nn.Module) -> list[str]:
    return [info.name for info in select_layers(model, probe(model, case.size), case.layers)]
