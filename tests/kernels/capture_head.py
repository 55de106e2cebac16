"""What torch's compilers see of ``combicam::cam_head`` on a GPU, with tensors that only claim one.

Prints JSON; like compile_kernels.py it runs in a process of its own.
"""

from __future__ import annotations

import json
from typing import Any

import torch
import torch._higher_order_ops.triton_kernel_wrap as wrap
import triton
from torch import Tensor
from torch._functorch.aot_autograd import aot_export_module
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import (
    DimDynamic,
    ShapeEnv,
    StatelessSymbolicContext,
)
from triton.backends.compiler import GPUTarget

from combicam.kernels.cam_head import cam_head, launch_cam_head

LAYERS = [(256, 56, 56), (512, 28, 28), (1024, 14, 14), (2048, 7, 7)]
SIZE = (224, 224)


class Driver:
    """The least of a driver that reading a kernel's stores asks for."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


class Head(torch.nn.Module):
    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        half = len(tensors) // 2
        grads = [g[:, None] for g in tensors[half:]]
        return tuple(cam_head(tensors[:half], grads, SIZE, keep_layers=False, dtype=torch.uint8))


def kernel_of(node: torch.fx.Node) -> Any:
    kernel = wrap.kernel_side_table.get_kernel(node.kwargs["kernel_idx"])
    return getattr(kernel, "fn", kernel)  # the options of a launch wrap it once more


def functional() -> tuple[list[str], list[str]]:
    """Kernels in order, and all operators, as Inductor is given them."""
    with FakeTensorMode():
        tensors = [
            torch.empty(3, *shape, dtype=torch.bfloat16, device="cuda:0").to(
                memory_format=torch.channels_last
            )
            for shape in LAYERS
        ] * 2
    graph, _ = aot_export_module(Head(), tuple(tensors), trace_joint=False)
    calls = [node for node in graph.graph.nodes if node.op == "call_function"]
    kernels = [n for n in calls if n.target is wrap.triton_kernel_wrapper_functional]
    names = [kernel_of(n).fn.__name__.removesuffix("_kernel") for n in kernels]
    return names, [str(n.target) for n in calls]


def written(dynamic: str = "b", method: str = "gradcam") -> tuple[dict[str, list[str]], list[str]]:
    """Which arguments each kernel writes, and guards on shapes; some of b, c, h, w are symbols."""
    mode = FakeTensorMode(shape_env=ShapeEnv())
    symbolic = [DimDynamic.DYNAMIC if n in dynamic else DimDynamic.STATIC for n in "bchw"]
    acts = [
        mode.from_tensor(
            torch.empty(3, *shape), symbolic_context=StatelessSymbolicContext(symbolic)
        )
        for shape in LAYERS
    ]

    def launch(*tensors: Tensor) -> list[Tensor]:
        grads = [t[:, None] for t in tensors]
        return launch_cam_head(
            tensors, grads, SIZE, method, "sum", "map", True, 0.0, (), 1e-8, False
        )

    with mode:
        graph = make_fx(launch, tracing_mode="symbolic")(*acts)
    found = {}
    for node in graph.graph.nodes:
        if node.target is wrap.triton_kernel_wrapper_mutation:
            found[kernel_of(node).fn.__name__] = _writes(node)
    return found, [str(guard) for guard in mode.shape_env.guards]


def _writes(node: torch.fx.Node) -> list[str]:
    given = {
        name: value.meta["val"] if isinstance(value, torch.fx.Node) else value
        for name, value in node.kwargs["kwargs"].items()
    }
    index, constants = node.kwargs["kernel_idx"], node.kwargs["constant_args_idx"]
    if hasattr(wrap, "get_mutated_tensors") and not hasattr(wrap, "identify_mutated_tensors"):
        return wrap.get_mutated_tensors(index, constants, given, {})
    fixed = wrap.kernel_side_table.get_constant_args(constants)
    return wrap.identify_mutated_tensors(kernel_of(node), {**given, **fixed}, {})


if __name__ == "__main__":
    triton.runtime.driver.set_active(Driver())
    kernels, operators = functional()
    writes, guards = written()
    sizes = [written(*each)[0] for each in (("hw", "gradcam"), ("bhw", "eigencam"))]
    found = {"functional": kernels, "operators": operators, "written": writes, "guards": guards}
    print(json.dumps({**found, "any size": [list(each) for each in sizes]}))
