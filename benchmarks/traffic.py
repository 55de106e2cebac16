"""Bytes that an image moves through memory in the joint graph, and its arithmetic: counted.

Every operator reads its inputs and writes its outputs once, and a convolution's bias costs one more
of each; views, weights and the cast of the images are free. In 16 bit the graph is the one that
CUDA gets. Bytes over bandwidth, plus arithmetic over the rate of the matrix units in 16 bit, is
what a GPU needs in eager torch if nothing waits. What is compiled, Inductor counts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from benchmarks.compiled_traffic import compiled_traffic
from benchmarks.harness import DTYPES, RESULTS, known, write_json
from benchmarks.networks import CASES, NAMES, network
from combicam.export.passes.passes import for_eager_cuda
from combicam.export.spec import CamSpec
from combicam.export.trace.snapshot import snapshot
from combicam.export.trace.symbolic import TRACE_BATCH
from combicam.export.trace.trace import trace

VIEWS = frozenset(
    "view reshape expand unsqueeze squeeze permute transpose t alias detach slice select "
    "_unsafe_view sym_size".split()
)
# Bytes/s of a copy (read and written) and FLOP/s of a bfloat16 product, measured.
GPUS = {"H100": (3.02e12, 725e12), "H200": (4.26e12, 725e12)}


@dataclass(frozen=True)
class Traffic:
    """Of one image.

    Attributes:
        bytes: read and written, by operator.
        calls: of operators that do work.
        flop: of convolutions; a multiplication and an addition are two.
    """

    bytes: Counter[str]
    calls: Counter[str]
    flop: float

    @property
    def megabytes(self) -> float:
        """All bytes, in 10^6."""
        return self.bytes.total() / 1e6

    def microseconds(self, gpu: str) -> float:
        """What a GPU needs if nothing waits, and nothing overlaps."""
        return _microseconds(self.bytes.total(), self.flop, gpu)


def _microseconds(moved: float, flop: float, gpu: str) -> float:
    bandwidth, rate = GPUS[gpu]
    return 1e6 * (moved / bandwidth + flop / rate)


def traffic_of(module: fx.GraphModule) -> Traffic:
    """Count a traced graph, whose values know their shapes."""
    moved: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    flop = 0.0
    for node in module.graph.nodes:
        name = _name(node)
        if not name or name in VIEWS or _is_cast_of_pixels(node):
            continue
        values = [*_tensors(node), *(v for n in node.all_input_nodes for v in _tensors(_source(n)))]
        if name == "convolution" and node.args[2] is not None:
            values += [*_tensors(node)] * 2  # torch adds it on CUDA by a kernel of its own
        moved[name] += round(sum(_bytes(v) for v in values if _has_batch(v)) / TRACE_BATCH)
        calls[name] += 1
        flop += _flop(module, node) if "convolution" in name else 0.0
    return Traffic(moved, calls, flop)


def _name(node: fx.Node) -> str:
    packet = getattr(node.target, "overloadpacket", None)
    return packet.__name__ if node.op == "call_function" and packet is not None else ""


def _is_cast_of_pixels(node: fx.Node) -> bool:
    """Whether it does nothing on a GPU, where pixels are normalised in the network's type."""
    images = next(n for n in node.graph.nodes if n.op == "placeholder")
    return _name(node) == "_to_copy" and node.args[0] is images


def _source(node: fx.Node) -> fx.Node:
    """What is read of an expanded value: the small one."""
    while _name(node) == "expand":
        (node, *_) = node.all_input_nodes
    return node


def _tensors(node: fx.Node) -> Iterator[Tensor]:
    value = node.meta.get("val")
    values = value if isinstance(value, (list, tuple)) else [value]
    yield from (v for v in values if isinstance(v, Tensor))


def _sizes(value: Tensor) -> list[int]:
    return [int(s.node.hint) if isinstance(s, torch.SymInt) else s for s in value.shape]


def _has_batch(value: Tensor) -> bool:
    return value.ndim > 0 and isinstance(value.shape[0], torch.SymInt)


def _bytes(value: Tensor) -> int:
    return math.prod(_sizes(value)) * value.dtype.itemsize


def _flop(module: fx.GraphModule, node: fx.Node) -> float:
    """Of an image: every weight meets every pixel of the output, or, transposed, of the input."""
    arguments: tuple[Any, ...] = node.args
    is_transposed = _name(node) == "convolution" and arguments[6]
    pixels = next(_tensors(arguments[0] if is_transposed else node))
    weight: Tensor = getattr(module, arguments[1].target)
    return 2.0 * weight.numel() * math.prod(_sizes(pixels)[2:])


@dataclass(frozen=True)
class TrafficConfig:
    """Bytes and arithmetic of an image in the joint graph, and what GPUs need for them in eager
    torch.

    Args:
        cases: which networks.
        dtype: of the computation, bfloat16 or float16; float32 has other rates.
        output: where the JSON goes.
    """

    cases: tuple[str, ...] = ("resnet50", "efficientnet_b4")
    dtype: str = "bfloat16"
    output: Path = RESULTS / "traffic.json"

    def __post_init__(self) -> None:
        known("traffic", self.cases, CASES)
        known("traffic", (self.dtype,), DTYPES)


def case_traffic(name: str, dtype: str) -> Traffic:
    """Of a case, laid out as on a GPU."""
    case = CASES[name]
    model = snapshot(network(case)).to(DTYPES[dtype]).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    module = trace(model, CamSpec(layers=case.layers), case.size).module
    return traffic_of(module if dtype == "float32" else for_eager_cuda(module))


def run_traffic(config: TrafficConfig) -> None:
    """Print the table, and write the record."""
    rows = []
    for name in config.cases:
        found = case_traffic(name, config.dtype)
        rows.append(
            {
                "case": name,
                "dtype": config.dtype,
                "megabytes": round(found.megabytes, 1),
                "gflop": round(found.flop / 1e9, 2),
                "calls": found.calls.total(),
                "compiled": compiled_traffic(name, config.dtype),
                "microseconds": {gpu: round(found.microseconds(gpu)) for gpu in GPUS},
                "megabytes_by_operator": {
                    op: round(n / 1e6, 1) for op, n in found.bytes.most_common(8)
                },
            }
        )
    write_json(config.output, {"rows": rows})
    print(traffic_table({"rows": rows}))


def traffic_table(record: dict[str, Any]) -> str:
    """Markdown of a record."""
    lines = [
        "| | MB an image | GFLOP | operators | "
        f"{' | '.join(f'µs, {gpu}' for gpu in GPUS)} | compiled: MB | kernels, convolutions | "
        f"{' | '.join(f'µs, {gpu}' for gpu in GPUS)} |",
        f"|---|---|---|---|{'---|' * (2 * len(GPUS) + 2)}",
    ]
    for row in record["rows"]:
        compiled = row["compiled"]
        floors = " | ".join(str(row["microseconds"][gpu]) for gpu in GPUS)
        bytes_, flop = 1e6 * compiled["megabytes"], 1e9 * row["gflop"]
        least = " | ".join(f"{_microseconds(bytes_, flop, gpu):.0f}" for gpu in GPUS)
        lines.append(
            f"| {NAMES[row['case']]}, {row['dtype']} | {row['megabytes']:.0f} | {row['gflop']:.1f} "
            f"| {row['calls']} | {floors} | {compiled['megabytes']:.0f} "
            f"| {compiled['kernels']}, {compiled['convolutions']} | {least} |"
        )
    return "\n".join(lines)
