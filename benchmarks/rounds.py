"""Every benchmark as a command: measure, print, write; and all of them within a budget."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.claim import ClaimConfig, claim
from benchmarks.claim_page import claim_table, photo_table
from benchmarks.decoders import DecodeBenchmark, decode_table, decoding
from benchmarks.designs import DesignsConfig, designs
from benchmarks.geo import GeoBenchmark, geo, geo_table
from benchmarks.graph import GraphConfig, run_graph
from benchmarks.harness import RESULTS, say, write, write_json
from benchmarks.kernels import KernelsConfig, run_kernels
from benchmarks.memory import peak_mib_of
from benchmarks.peers import PeersConfig, peers, peers_table
from benchmarks.photo_claim import PhotoClaimConfig, photo_claim
from benchmarks.photos import NETWORKS
from benchmarks.pipeline import PipelineConfig, pipeline
from benchmarks.pipeline_page import pipeline_table
from benchmarks.runs import RunsConfig, runs, runs_table
from benchmarks.scaling import ScalingConfig, scaling
from benchmarks.scaling_page import scaling_table


def run_decode(config: DecodeBenchmark) -> None:
    """Disk is in no figure."""
    rows = decoding(config, say, partial(write, config.output))
    print(f"\n{decode_table(rows)}\n", flush=True)
    write(config.output, rows)


def run_geo(config: GeoBenchmark) -> None:
    """Decoding is in no figure."""
    rows = geo(config, say)
    print(f"\n{geo_table(rows)}\n", flush=True)
    write(config.output, rows)


def run_pipeline(config: PipelineConfig) -> None:
    """Decoding, transfers and writing are in every figure of the whole run."""
    rows = pipeline(config, say, partial(write, config.output))
    print(f"\n{pipeline_table(rows)}\n", flush=True)
    write(config.output, rows)


def run_runs(config: RunsConfig) -> None:
    """Start-up is in every figure of the whole command."""
    rows = runs(config, say, lambda rows: write(config.output, rows))
    print(f"\n{runs_table(rows)}\n", flush=True)


def run_claim(config: ClaimConfig) -> None:
    """What the maps are worth, not how fast they are."""
    if config.photos is None:
        record, table = claim(config, say), claim_table
    else:
        networks = config.networks or tuple(NETWORKS)
        photos = PhotoClaimConfig(
            config.photos, networks, steps=config.steps, threads=config.threads
        )
        record, table = photo_claim(photos, say), photo_table
    name = "claim-cpu.json" if config.photos is None else "claim-photos-cpu.json"
    output = config.output or RESULTS / name
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(record, indent=1) + "\n")
    print(f"\n{table(record)}\n\nwritten: {output}", flush=True)


def run_designs(config: DesignsConfig) -> None:
    """Which multi-layer map is best, where it is chosen."""
    record = designs(config, say)
    config.output.parent.mkdir(parents=True, exist_ok=True)
    config.output.write_text(json.dumps(record, indent=1) + "\n")
    print(f"\nwritten: {config.output}", flush=True)


def run_peers(config: PeersConfig) -> None:
    """This library and others."""
    rows = peers(config, say, lambda rows: write(config.output, rows))
    for case in config.cases:
        mine = [row for row in rows if row.params["case"] == case]
        print(f"\n{case}\n\n{peers_table(mine)}\n", flush=True)


def run_scaling(config: ScalingConfig) -> None:
    """Curves, not one figure."""
    rows = scaling(config, say)
    print(f"\n{scaling_table(rows)}\n", flush=True)
    memory = " ".join((peak_mib_of.__doc__ or "").split("Args:")[0].split())
    cases = [row.to_dict() for row in rows]
    write_json(config.record, {"peak_mib": memory, "cases": cases})


@dataclass(frozen=True)
class AllConfig:
    """Every benchmark within a budget: what one lease of a GPU is spent on.

    Args:
        device: ``cpu`` or ``cuda``.
        budget: seconds after which nothing is begun; what was not is a row that says so.
        output: folder of the JSON files.
    """

    device: str = "cpu"
    budget: float = 540
    output: Path = RESULTS


def run_all(config: AllConfig) -> None:
    """Kernels, the graph, the run, other libraries, the wide head: each gets what it may take."""
    cuda, end = config.device == "cuda", time.monotonic() + config.budget

    def left(share: float) -> float:
        return max(0.0, share * (end - time.monotonic()))

    def output(name: str) -> Path:
        return config.output / f"{name}-{config.device}.json"

    run_kernels(KernelsConfig(device=config.device, budget=left(1 / 4), output=output("kernels")))
    sized = ("resnet50:256", "efficientnet_b4:64") if cuda else ("resnet50", "efficientnet_b4")
    run_graph(GraphConfig(sized, device=config.device, budget=left(1 / 3), output=output("graph")))
    if cuda and left(1):
        run_pipeline(
            PipelineConfig(
                model="timm:resnet50",
                photos=20_000,
                batch=256,
                workers=16,
                device="cuda",
                amp_dtype="bfloat16",
                growth=0,
                output=output("pipeline"),
            )
        )
    run_peers(
        PeersConfig(
            device=config.device,
            largest=256 if cuda else 16,
            budget=left(0.8),
            output=output("peers"),
        )
    )
    if left(1):
        run_geo(GeoBenchmark(device=config.device, output=output("geo")))
