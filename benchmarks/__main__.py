"""``python -m benchmarks graph``: measure, print the table, write the JSON."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from benchmarks.environment import environment
from benchmarks.graph import CASES, contenders
from benchmarks.harness import measure, table

BASELINE = "forward, ONNX Runtime"


@dataclass(frozen=True)
class GraphConfig:
    """The joint graph beside the forward alone and beside other libraries.

    Args:
        cases: which networks.
        batch_size: images per call.
        rounds: how often every contender is timed, in turn; medians are reported.
        threads: of torch; ONNX Runtime takes the physical cores.
        authors: also time one forward and backward per layer, on one image.
        output: where the JSON goes; decoding of images is in no figure.
    """

    cases: tuple[str, ...] = ("resnet50", "efficientnet_b4")
    batch_size: int = 8
    rounds: int = 5
    threads: int = 2
    authors: bool = True
    output: Path = Path("benchmarks/results/graph-cpu.json")

    def __post_init__(self) -> None:
        unknown = set(self.cases) - set(CASES)
        if unknown:
            raise ValueError(f"graph: expected cases of {sorted(CASES)}, got {sorted(unknown)}")


def graph(config: GraphConfig) -> None:
    """Run every case; a table for people and a JSON file for the record."""
    torch.set_num_threads(config.threads)
    rows = []
    for name in config.cases:
        case = CASES[name]
        params = {
            "model": case.model,
            "size": case.size,
            "layers": case.layers,
            "batch": config.batch_size,
        }
        print(f"{name}: {params}", file=sys.stderr)
        found = measure(
            contenders(case, config.batch_size, config.authors),
            {"case": name, **params},
            config.rounds,
            lambda line: print(line, file=sys.stderr, flush=True),
        )
        rows += found
        print(f"\n### {name}\n\n{table(found, BASELINE)}\n", flush=True)
    config.output.parent.mkdir(parents=True, exist_ok=True)
    record = {"env": environment(), "cases": [row.to_dict() for row in rows]}
    config.output.write_text(json.dumps(record, indent=1) + "\n")
    print(f"written: {config.output}")


if __name__ == "__main__":
    arguments = sys.argv[1:]
    if arguments[:1] != ["graph"]:
        raise SystemExit("usage: python -m benchmarks graph [--help]")
    graph(tyro.cli(GraphConfig, args=arguments[1:], prog="python -m benchmarks graph"))
