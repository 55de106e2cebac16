"""Bytes that an image moves through memory in the compiled joint graph, as Inductor counts them.

``python -m benchmarks.compiled_traffic resnet50 bfloat16`` prints JSON. It compiles for a GPU that
is not there, which takes a process of its own; nothing is tuned, so reductions may differ from
those that a GPU would choose.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import torch
from torch import Tensor, fx, nn

from benchmarks.harness import DTYPES
from benchmarks.networks import CASES, network
from combicam.export.spec import CamSpec
from combicam.export.trace.snapshot import snapshot
from combicam.export.trace.trace import trace

_BATCH = 64


def compiled_traffic(name: str, dtype: str) -> dict[str, Any]:
    """Of a case, counted in another process.

    Args:
        name: of :data:`~benchmarks.networks.CASES`.
        dtype: of the computation.

    Returns:
        ``megabytes`` of an image, read and written, with a 64th of the weights; ``kernels`` of
        Triton and ``convolutions`` that are launched for a batch of 64.
    """
    command = [sys.executable, "-W", "ignore", "-m", __name__, name, dtype]
    compiling = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(command, capture_output=True, text=True, env=compiling, check=False)
    if done.returncode:
        raise RuntimeError(f"expected {' '.join(command)} to count, got {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _count(name: str, dtype: str) -> dict[str, Any]:
    from torch._functorch.aot_autograd import aot_export_module
    from torch._inductor.decomposition import select_decomp_table
    from torch._inductor.virtualized import V
    from torch._subclasses.fake_tensor import FakeTensorMode

    from benchmarks.pretended_gpu import lowered, pretend

    case = CASES[name]
    model = snapshot(network(case)).to(DTYPES[dtype])  # type: ignore[call-overload]
    model = model.to(memory_format=torch.channels_last)
    module = _on_gpu(trace(model, CamSpec(layers=case.layers), case.size).module)
    pretend()
    names, weights = zip(*module.named_buffers(), strict=True)
    mode = FakeTensorMode()
    with mode:
        images = torch.empty(_BATCH, 3, *case.size, device="cuda:0")
        images = images.to(memory_format=torch.channels_last)
        targets = torch.empty(_BATCH, 1, dtype=torch.int64, device="cuda:0")
        held = [
            torch.empty_strided(w.shape, w.stride(), dtype=w.dtype, device="cuda:0")
            for w in weights
        ]

    class WithWeights(nn.Module):
        """The graph as a function of its weights, too."""

        def forward(self, images: Tensor, targets: Tensor, *weights: Tensor) -> tuple[Any, ...]:
            given = dict(zip(names, weights, strict=True))
            return tuple(torch.func.functional_call(module, given, (images, targets)))

    inputs = [images, targets, *held]
    graph, _ = aot_export_module(
        WithWeights(), tuple(inputs), trace_joint=False, decompositions=select_decomp_table()
    )
    lowering, code = lowered(graph, inputs, mode)
    with V.set_graph_handler(lowering):
        moved, *_ = lowering.count_bytes()
    call = code.partition("def call(")[2]
    return {
        "megabytes": round(moved / _BATCH / 1e6, 1),
        "kernels": call.count(".run("),
        "convolutions": call.count("extern_kernels.convolution("),
    }


def _on_gpu(module: fx.GraphModule) -> fx.GraphModule:
    """With the devices that it names replaced."""
    gpu = torch.device("cuda:0")
    for node in module.graph.nodes:
        node.args, node.kwargs = fx.node.map_aggregate(
            (node.args, node.kwargs), lambda x: gpu if isinstance(x, torch.device) else x
        )
    module.recompile()
    return module


if __name__ == "__main__":
    print(json.dumps(_count(*sys.argv[1:3])))
