"""``python -m benchmarks graph | peers | scaling | kernels | pipeline | claim | all | …``"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import tyro

from benchmarks.claim import ClaimConfig
from benchmarks.compare import compare, compare_table, to_json
from benchmarks.decoders import DecodeBenchmark
from benchmarks.designs import DesignsConfig
from benchmarks.device import DeviceConfig, run_device
from benchmarks.geo import GeoBenchmark
from benchmarks.graph import GraphConfig, run_graph
from benchmarks.harness import RESULTS, say, write_json
from benchmarks.kernels import KernelsConfig, run_kernels
from benchmarks.peers import PeersConfig
from benchmarks.pipeline import PipelineConfig
from benchmarks.rounds import (
    AllConfig,
    run_all,
    run_claim,
    run_decode,
    run_designs,
    run_geo,
    run_peers,
    run_pipeline,
    run_runs,
    run_scaling,
)
from benchmarks.runs import RunsConfig
from benchmarks.scaling import ScalingConfig
from benchmarks.tables import TablesConfig, tables
from benchmarks.traffic import TrafficConfig, run_traffic
from combicam import tune_allocator

COMMANDS: dict[str, tuple[type[Any], Callable[[Any], None]]] = {
    "graph": (GraphConfig, run_graph),
    "kernels": (KernelsConfig, run_kernels),
    "decode": (DecodeBenchmark, run_decode),
    "pipeline": (PipelineConfig, run_pipeline),
    "runs": (RunsConfig, run_runs),
    "geo": (GeoBenchmark, run_geo),
    "claim": (ClaimConfig, run_claim),
    "faithfulness": (ClaimConfig, run_claim),
    "designs": (DesignsConfig, run_designs),
    "peers": (PeersConfig, run_peers),
    "scaling": (ScalingConfig, run_scaling),
    "tables": (TablesConfig, tables),
    "all": (AllConfig, run_all),
    "device": (DeviceConfig, run_device),
    "traffic": (TrafficConfig, run_traffic),
}

# What has a speed and one record.
COMPARED = tuple(
    name
    for name in COMMANDS
    if name
    not in ("all", "device", "runs", "tables", "traffic", "claim", "faithfulness", "designs")
)


def run_compare(case: str, arguments: list[str]) -> None:
    """``CASE --compare REV …``: the case here and at another commit, in turn."""
    at = arguments.index("--compare")
    revision, rest = arguments[at + 1], arguments[:at] + arguments[at + 2 :]
    rows = compare(case, rest, revision, say)
    print(f"\n{compare_table(rows, revision)}\n", flush=True)
    write_json(RESULTS / f"compare-{case}.json", {"revision": revision, "rows": to_json(rows)})


def main(arguments: list[str]) -> None:
    """Run what is asked."""
    command, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if command not in COMMANDS:
        raise SystemExit(
            f"usage: python -m benchmarks {' | '.join(COMMANDS)} [--help]\n"
            f"       python -m benchmarks {' | '.join(COMPARED)} --compare REV …"
        )
    if "--compare" in rest[:-1] and command in COMPARED:
        run_compare(command, rest)
        return
    tune_allocator()  # as the commands do
    config_class, function = COMMANDS[command]
    function(tyro.cli(config_class, args=rest, prog=f"python -m benchmarks {command}"))


if __name__ == "__main__":
    main(sys.argv[1:])
