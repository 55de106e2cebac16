"""``python -m benchmarks graph | peers | scaling | kernels | pipeline | claim | all | …``"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import tyro

from benchmarks.claim import ClaimConfig
from benchmarks.decoders import DecodeBenchmark
from benchmarks.geo import GeoBenchmark
from benchmarks.graph import GraphConfig, run_graph
from benchmarks.kernels import KernelsConfig, run_kernels
from benchmarks.peers import PeersConfig
from benchmarks.pipeline import PipelineConfig
from benchmarks.rounds import (
    AllConfig,
    run_all,
    run_claim,
    run_decode,
    run_geo,
    run_peers,
    run_pipeline,
    run_scaling,
)
from benchmarks.scaling import ScalingConfig
from benchmarks.tables import TablesConfig, tables

COMMANDS: dict[str, tuple[type[Any], Callable[[Any], None]]] = {
    "graph": (GraphConfig, run_graph),
    "kernels": (KernelsConfig, run_kernels),
    "decode": (DecodeBenchmark, run_decode),
    "pipeline": (PipelineConfig, run_pipeline),
    "geo": (GeoBenchmark, run_geo),
    "claim": (ClaimConfig, run_claim),
    "peers": (PeersConfig, run_peers),
    "scaling": (ScalingConfig, run_scaling),
    "tables": (TablesConfig, tables),
    "all": (AllConfig, run_all),
}

if __name__ == "__main__":
    command = sys.argv[1] if len(sys.argv) > 1 else ""
    if command not in COMMANDS:
        raise SystemExit(f"usage: python -m benchmarks {' | '.join(COMMANDS)} [--help]")
    config_class, function = COMMANDS[command]
    function(tyro.cli(config_class, args=sys.argv[2:], prog=f"python -m benchmarks {command}"))
