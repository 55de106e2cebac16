"""The C++ that AOTInductor writes around the head for a GPU that is not here, of any batch size.

Prints JSON: per kernel how many parameters it was compiled with, how many arguments the C++ passes,
and how often it is launched. A driver reads one argument per parameter, there or not.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from types import SimpleNamespace
from typing import Any
from unittest import mock

import inductor_head as head
import torch
import torch._inductor.runtime.triton_helpers
from torch._dynamo.device_interface import CudaInterface
from torch._dynamo.source import ConstantSource
from torch._functorch.aot_autograd import aot_export_module
from torch._inductor import config
from torch._inductor.codegen.wrapper import PythonWrapperCodegen
from torch._inductor.runtime.triton_heuristics import CachingAutotuner
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv

from benchmarks import pretended_gpu

PARAMETERS: dict[str, int] = {}


class Driver(pretended_gpu.Driver):
    """Also takes compiled kernels, without loading or launching them."""

    utils = SimpleNamespace(
        load_binary=lambda *_: (1, 2, 32, 0, 1024),  # module, function, registers, spills, threads
        get_device_properties=lambda _: {"max_shared_mem": 227 << 10},
        unload_module=lambda *_: None,
    )

    def launcher_cls(self, *_: Any) -> None:
        return None


def compile_kernels(wrapper: PythonWrapperCodegen) -> None:
    """In place of tuning, which runs them: compile, and keep what the C++ is written from."""
    scope: dict[str, Any] = {}
    exec(wrapper.kernel_autotune_defs.getvalue(), scope)
    for kernel in [k for k in scope.values() if isinstance(k, CachingAutotuner)]:
        launcher: Any = kernel.launchers[0]
        kernel.save_gpu_kernel(0, launcher)
        entry = launcher.bin.asm["ptx"].partition(".entry")[2].partition(")")[0]
        PARAMETERS[kernel.inductor_meta["kernel_name"]] = entry.count(".param")


def generated() -> str:
    """AOTInductor's C++."""
    mode = FakeTensorMode(shape_env=ShapeEnv())
    source = ConstantSource("batch")
    symbol = mode.shape_env.create_symbol(3, source, DimDynamic.DYNAMIC, constraint_dim=None)
    batch = mode.shape_env.create_symintnode(symbol, hint=3, source=source)
    with mode:
        tensors = [
            torch.empty(batch, h, w, c, dtype=torch.bfloat16, device="cuda:0").permute(0, 3, 1, 2)
            for c, h, w in head.LAYERS
        ] * 2
        graph, _ = aot_export_module(head.Doubled(), tuple(tensors), trace_joint=False)
    options = {"cpp_wrapper": True, "graph_partition": False, "triton.store_cubin": True}
    options |= {"triton.autotune_at_compile_time": True, "aot_inductor.embed_kernel_binary": False}
    tuning = mock.patch.object(
        PythonWrapperCodegen, "generate_and_run_autotune_block", compile_kernels
    )
    with tuning, config.patch(options):
        return pretended_gpu.lowered(graph, tensors, mode, cpp_wrapper=True, aot_mode=True)[1]


if __name__ == "__main__":
    pretended_gpu.pretend(Driver())
    torch._inductor.runtime.triton_helpers.set_driver_to_gpu = lambda *_: None
    for name in ("exchange_device", "maybe_exchange_device", "synchronize"):
        mock.patch.object(CudaInterface, name, lambda *_: 0).start()
    code = generated()
    passed = re.findall(r"kernel_args_\[\] = \{(.*?)\};\s*launchKernel\(kernels_\.(\w+)", code)
    run = code.partition("AOTInductorModel::run_impl(")[2]
    print(
        json.dumps(
            {
                "parameters": PARAMETERS,
                "arguments": {name: len(found.split(",")) for found, name in passed},
                "launches": Counter(re.findall(r"\bcall_(\w+)\(", run)),
            }
        )
    )
