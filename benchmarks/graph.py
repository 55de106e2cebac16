"""The joint graph beside the forward alone and beside other libraries, on the same layers."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.harness import (
    DTYPES,
    RESULTS,
    Contender,
    Result,
    check_device,
    known,
    measure,
    say,
    table,
    write,
)
from benchmarks.kernel_times import profiled
from benchmarks.ladder import FORWARD, Setting, ladder, under_autocast
from benchmarks.libraries import AUTHORS, TOLERANCE, counterpart, library, typical_error
from benchmarks.networks import CASES, Case, network
from combicam import Explainer, export, tune_allocator
from combicam.engine.explain.artifact_export import natural_noise

BASELINE = "forward, ONNX Runtime"


def layer_names(explainer: Explainer) -> list[str]:
    """The target layers, so that others take the same."""
    return [info.name for info in explainer.layers]


def gpu_contenders(
    case: Case, batch: int, authors: bool, device: torch.device, dtype: torch.dtype
) -> Iterator[Contender]:
    """The ladder on one device, and the others there, in float32 and in 16 bit."""
    model = network(case).to(device)
    images = natural_noise(batch, case.size, seed=2).to(device)
    setting = Setting(model, images, case.size, case.layers, dtype)
    yield from ladder(setting)
    names = layer_names(setting.explainer(torch.float32))
    yield from others(model, case, names, images)
    # pytorch-grad-cam passes gradients on to NumPy, which has no bfloat16.
    yield from under_autocast(others(model, case, names, images), torch.float16)
    if authors:
        yield _authors(model, case, names, images)


def contenders(case: Case, batch: int, authors: bool) -> Iterator[Contender]:
    """Forward alone, our graph in every runtime, and the others."""
    model = network(case)
    images = natural_noise(batch, case.size, seed=2)
    explainer = Explainer(model, case.size, layers=case.layers)
    expected = explainer(images)
    names = layer_names(explainer)

    def heatmap_error(found: Any) -> float:
        return float((found.heatmaps - expected.heatmaps).abs().max())

    def logit_error(found: Tensor) -> float:
        return float((found - expected.logits).abs().max())

    yield Contender(BASELINE, lambda: ort_forward(model, images), batch, logit_error)
    yield Contender(
        "forward, torch eager", lambda: torch_forward(model, images), batch, logit_error
    )
    yield Contender("combicam, eager", lambda: lambda: explainer(images), batch, heatmap_error)
    # A ReLU at zero to rounding may differ between runtimes.
    for name, prepare in {
        "combicam, .onnx": _artifact(explainer, images, ".onnx", "onnxruntime"),
        "combicam, .onnx in OpenVINO": _artifact(explainer, images, ".onnx", "openvino"),
        "combicam, .ts": _artifact(explainer, images, ".ts", "torchscript"),
        "combicam, compile": lambda: partial(explainer.with_backend("compile"), images),
    }.items():
        yield Contender(name, prepare, batch, heatmap_error, tolerance=2e-2)
    yield from others(model, case, names, images)
    if authors:
        yield _authors(model, case, names, images)


def ort_forward(model: nn.Module, images: Tensor) -> Callable[[], Tensor]:
    """The network alone, as an ONNX file on the CPU: a call gives the logits."""
    import onnxruntime as ort

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = f"{folder}/forward.onnx"
        torch.onnx.export(
            model,
            (images[:2],),
            path,
            dynamo=True,
            verbose=False,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            external_data=False,
        )
        session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda: torch.from_numpy(session.run(None, {name: images.numpy()})[0])


def torch_forward(model: nn.Module, images: Tensor) -> Callable[[], Tensor]:
    """The network alone in torch: a call gives the logits."""

    def forward() -> Tensor:
        with torch.no_grad():
            logits: Tensor = model(images)
        return logits

    return forward


def _artifact(
    explainer: Explainer, images: Tensor, suffix: str, backend: str
) -> Callable[[], Callable[[], Any]]:
    def prepare() -> Callable[[], Any]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"joint{suffix}"
            export(explainer, path, verify=False)
            loaded = Explainer.load(path, device="cpu", backend=backend)
        for _ in range(2):  # TorchScript specialises in its first calls
            loaded(images)
        return lambda: loaded(images)

    return prepare


def others(
    model: nn.Module,
    case: Case,
    layers: list[str],
    images: Tensor,
    names: tuple[str, ...] = ("pytorch-grad-cam", "torchcam"),
) -> Iterator[Contender]:
    """Other libraries, each checked against ours with its semantics."""

    def error(found: Any, name: str) -> float:
        return typical_error(found, counterpart(name, model, layers, case.size)(images))

    for name in names:
        prepare = partial(_library, name, model, layers, images)
        yield Contender(name, prepare, len(images), partial(error, name=name), TOLERANCE)


def _library(name: str, model: nn.Module, layers: list[str], images: Tensor) -> Callable[[], Any]:
    return partial(library(name, model, layers, _size(images)), images)


def _authors(model: nn.Module, case: Case, layers: list[str], images: Tensor) -> Contender:
    """One photo at a time, as their code works."""
    (contender,) = others(model, case, layers, images[:1], (AUTHORS,))
    return replace(contender, name=f"{AUTHORS} (1 image)")


def _size(images: Tensor) -> tuple[int, int]:
    height, width = images.shape[2:]
    return height, width


@dataclass(frozen=True)
class GraphConfig:
    """The joint graph beside the forward alone and beside other libraries.

    Args:
        cases: which networks, NAME or NAME:BATCH; without a batch, 8 images per call.
        ladder: one step a row on ``device`` (float32, 16 bit, compiled, the head's kernels, CUDA
            graphs, AOTInductor), instead of the artifacts on the CPU.
        device: ``cpu`` or ``cuda``; cuda means the ladder.
        dtype: of the ladder's fast rows.
        rounds: how often every contender is timed, in turn; medians are reported.
        threads: of torch; ONNX Runtime takes the physical cores.
        tuned: tune the allocator, as combicam's commands do; it is that of all rows.
        authors: also time one forward and backward per layer, on one image.
        budget: seconds after which no further case is begun.
        rows: names, or beginnings of names, of the contenders; empty means all.
        profile: also write which kernels of a GPU each row spends its time in, beside the JSON.
        output: where the JSON goes; decoding of images is in no figure.
    """

    cases: tuple[str, ...] = ("resnet50", "efficientnet_b4")
    ladder: bool = False
    device: str = "cpu"
    dtype: str = "bfloat16"
    rounds: int = 5
    threads: int = 2
    tuned: bool = True
    authors: bool = True
    budget: float = float("inf")
    rows: tuple[str, ...] = ()
    profile: bool = False
    output: Path = RESULTS / "graph-cpu.json"

    def __post_init__(self) -> None:
        known("graph", tuple(case.partition(":")[0] for case in self.cases), CASES)
        check_device("graph", self.device, self.dtype)


def run_graph(config: GraphConfig) -> None:
    """Run every case; a table for people and a JSON file for the record."""
    if config.tuned:
        tune_allocator()
    torch.set_num_threads(config.threads)
    started = time.monotonic()
    device, dtype = torch.device(config.device), DTYPES[config.dtype]
    on_ladder = config.ladder or device.type == "cuda"
    rows: list[Result] = []
    for name in config.cases:
        case, batch = CASES[name.partition(":")[0]], int(name.partition(":")[2] or 8)
        params = {"case": case.name, "model": case.model, "size": case.size, "layers": case.layers}
        params |= {"batch": batch, "device": config.device, "tuned": config.tuned}
        if time.monotonic() - started > config.budget:
            rows.append(Result("all", params, error=f"not begun: budget {config.budget:.0f} s"))
            continue
        say(f"{name}: {params}")
        if on_ladder:
            entrants = gpu_contenders(case, batch, config.authors, device, dtype)
        else:
            entrants = contenders(case, batch, config.authors)
        chosen = [c for c in entrants if not config.rows or c.name.startswith(config.rows)]
        if config.profile:
            chosen = [profiled(c, config.output.with_suffix(".kernels.txt")) for c in chosen]
        found = measure(
            chosen,
            params,
            config.rounds,
            say,
            lambda now, done=rows: write(config.output, done + now),
        )
        rows = rows + found
        baseline = FORWARD if on_ladder else BASELINE
        print(f"\n### {name}\n\n{table(found, baseline)}\n", flush=True)
    write(config.output, rows)
