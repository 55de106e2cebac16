"""``python -m benchmarks graph | kernels | decode | pipeline | peers | geo | claim | all | …``"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

from benchmarks.claim import ClaimConfig, claim
from benchmarks.claim_page import claim_table
from benchmarks.decoders import DecodeBenchmark, decode_table, decoding
from benchmarks.environment import environment
from benchmarks.geo import GeoBenchmark, geo, geo_table
from benchmarks.graph import contenders, gpu_contenders
from benchmarks.harness import Result, measure, table
from benchmarks.kernels import CASES as HEADS
from benchmarks.kernels import head_contenders, head_table, inputs_per_call, read_bytes
from benchmarks.ladder import FORWARD
from benchmarks.networks import CASES
from benchmarks.peers import PEERS, PeersConfig, peers, peers_table
from benchmarks.pipeline import PipelineConfig, pipeline
from benchmarks.pipeline_page import pipeline_table
from benchmarks.tables import TablesConfig, tables

BASELINE = "forward, ONNX Runtime"
RESULTS = Path("benchmarks/results")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def say(line: str) -> None:
    """Progress, which is not the result."""
    print(line, file=sys.stderr, flush=True)


def write(path: Path, rows: list[Result]) -> None:
    """The record of a round."""
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"env": environment(), "cases": [row.to_dict() for row in rows]}
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"written: {path}", flush=True)


def _known(what: str, asked: tuple[str, ...], known: Any) -> None:
    unknown = set(asked) - set(known)
    if unknown:
        raise ValueError(f"{what}: expected cases of {sorted(known)}, got {sorted(unknown)}")


def _check_device(what: str, device: str, dtype: str) -> None:
    if dtype not in DTYPES:
        raise ValueError(f"{what}: expected dtype in {list(DTYPES)}, got {dtype!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"{what}: expected a GPU for device cuda, got none; take --device cpu")


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
        authors: also time one forward and backward per layer, on one image.
        budget: seconds after which no further case is begun.
        output: where the JSON goes; decoding of images is in no figure.
    """

    cases: tuple[str, ...] = ("resnet50", "efficientnet_b4")
    ladder: bool = False
    device: str = "cpu"
    dtype: str = "bfloat16"
    rounds: int = 5
    threads: int = 2
    authors: bool = True
    budget: float = float("inf")
    output: Path = RESULTS / "graph-cpu.json"

    def __post_init__(self) -> None:
        _known("graph", tuple(case.partition(":")[0] for case in self.cases), CASES)
        _check_device("graph", self.device, self.dtype)


def graph(config: GraphConfig) -> None:
    """Run every case; a table for people and a JSON file for the record."""
    torch.set_num_threads(config.threads)
    started = time.monotonic()
    device, dtype = torch.device(config.device), DTYPES[config.dtype]
    on_ladder = config.ladder or device.type == "cuda"
    rows = []
    for name in config.cases:
        case, batch = CASES[name.partition(":")[0]], int(name.partition(":")[2] or 8)
        params = {"case": case.name, "model": case.model, "size": case.size, "layers": case.layers}
        params |= {"batch": batch, "device": config.device}
        if time.monotonic() - started > config.budget:
            rows.append(Result("all", params, error=f"not begun: budget {config.budget:.0f} s"))
            continue
        say(f"{name}: {params}")
        if on_ladder:
            entrants = gpu_contenders(case, batch, config.authors, device, dtype)
        else:
            entrants = contenders(case, batch, config.authors)
        found = measure(entrants, params, config.rounds, say)
        rows += found
        baseline = FORWARD if on_ladder else BASELINE
        print(f"\n### {name}\n\n{table(found, baseline)}\n", flush=True)
    write(config.output, rows)


@dataclass(frozen=True)
class KernelsConfig:
    """The CAM head: kernels (on a GPU), the torch reference, Inductor's fusion, pytorch-grad-cam.

    Args:
        device: ``cpu`` or ``cuda``; without a GPU there are no kernels to time.
        cases: NAME:BATCH, the target layers of a network at a batch size.
        dtype: of activations and gradients; channels-last.
        rounds: how often every contender is timed, in turn; medians are reported.
        threads: of torch on the CPU.
        budget: seconds after which no further case is begun.
        output: where the JSON goes.
    """

    device: str = "cpu"
    cases: tuple[str, ...] = (
        "resnet50:256",
        "resnet50:1",
        "resnet50:32",
        "efficientnet_b4:64",
        "efficientnet_b4:1",
        "convnext:64",
    )
    dtype: str = "bfloat16"
    rounds: int = 9
    threads: int = 2
    budget: float = float("inf")
    output: Path = RESULTS / "kernels.json"

    def __post_init__(self) -> None:
        _known("kernels", tuple(case.partition(":")[0] for case in self.cases), HEADS)
        _check_device("kernels", self.device, self.dtype)


def kernels(config: KernelsConfig) -> None:
    """Run every case; correctness gates timing."""
    torch.set_num_threads(config.threads)
    started = time.monotonic()
    dtype, device = DTYPES[config.dtype], torch.device(config.device)
    rows = []
    for case in config.cases:
        name, _, batch = case.partition(":")
        params = {"case": name, "batch": int(batch), "dtype": config.dtype, "device": config.device}
        if time.monotonic() - started > config.budget:
            rows.append(Result("all", params, error=f"not begun: budget {config.budget:.0f} s"))
            continue
        head = HEADS[name]
        moved, count = read_bytes(head, int(batch), dtype), 0
        count = inputs_per_call(moved, device)
        say(f"{case}: {params}")
        found = measure(
            head_contenders(head, int(batch), dtype, device),
            {**params, "bytes": moved, "batches_per_call": count},
            config.rounds,
            say,
        )
        rows += found
        print(f"\n### {name}, batch {batch}, {config.dtype}\n\n{head_table(found)}\n", flush=True)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    write(config.output, rows)


def decode(config: DecodeBenchmark) -> None:
    """Disk is in no figure."""
    rows = decoding(config, say)
    print(f"\n{decode_table(rows)}\n", flush=True)
    write(config.output, rows)


def run_geo(config: GeoBenchmark) -> None:
    """Decoding is in no figure."""
    rows = geo(config, say)
    print(f"\n{geo_table(rows)}\n", flush=True)
    write(config.output, rows)


def run_pipeline(config: PipelineConfig) -> None:
    """Decoding, transfers and writing are in every figure of the whole run."""
    rows = pipeline(config, say)
    print(f"\n{pipeline_table(rows)}\n", flush=True)
    write(config.output, rows)


def run_claim(config: ClaimConfig) -> None:
    """What the maps are worth, not how fast they are."""
    record = claim(config, say)
    config.output.parent.mkdir(parents=True, exist_ok=True)
    config.output.write_text(json.dumps(record, indent=1) + "\n")
    print(f"\n{claim_table(record)}\n\nwritten: {config.output}", flush=True)


@dataclass(frozen=True)
class AllConfig:
    """Every benchmark within a budget: what one lease of a GPU is spent on.

    Args:
        device: ``cpu`` or ``cuda``.
        budget: seconds for everything; kernels take at most a third.
        output: folder of the JSON files.
    """

    device: str = "cpu"
    budget: float = 540
    output: Path = RESULTS


def run_peers(config: PeersConfig) -> None:
    """This library and others."""
    _known("peers", config.cases, CASES)
    _known("peers", config.peers, PEERS)
    _check_device("peers", config.device, "float32")
    rows = peers(config, say)
    for case in config.cases:
        mine = [row for row in rows if row.params["case"] == case]
        print(f"\n{case}\n\n{peers_table(mine)}\n", flush=True)
    write(config.output, rows)


def run_all(config: AllConfig) -> None:
    """Kernels, then the graph, then (on a GPU) the run."""
    started = time.monotonic()
    kernels(
        KernelsConfig(
            device=config.device,
            budget=config.budget / 3,
            output=config.output / f"kernels-{config.device}.json",
        )
    )
    left = config.budget - (time.monotonic() - started)
    cuda = config.device == "cuda"
    graph(
        GraphConfig(
            cases=("resnet50:256", "efficientnet_b4:64")
            if cuda
            else ("resnet50", "efficientnet_b4"),
            device=config.device,
            budget=left / 2,
            output=config.output / f"graph-{config.device}.json",
        )
    )
    if cuda and time.monotonic() - started < config.budget:
        run_pipeline(
            PipelineConfig(
                model="timm:resnet50",
                photos=20_000,
                batch=256,
                workers=16,
                device="cuda",
                amp_dtype="bfloat16",
                growth=0,
                output=config.output / "pipeline-cuda.json",
            )
        )


COMMANDS: dict[str, tuple[type[Any], Callable[[Any], None]]] = {
    "graph": (GraphConfig, graph),
    "kernels": (KernelsConfig, kernels),
    "decode": (DecodeBenchmark, decode),
    "pipeline": (PipelineConfig, run_pipeline),
    "geo": (GeoBenchmark, run_geo),
    "claim": (ClaimConfig, run_claim),
    "peers": (PeersConfig, run_peers),
    "tables": (TablesConfig, tables),
    "all": (AllConfig, run_all),
}

if __name__ == "__main__":
    command = sys.argv[1] if len(sys.argv) > 1 else ""
    if command not in COMMANDS:
        raise SystemExit(f"usage: python -m benchmarks {' | '.join(COMMANDS)} [--help]")
    config_class, function = COMMANDS[command]
    function(tyro.cli(config_class, args=sys.argv[2:], prog=f"python -m benchmarks {command}"))
