"""A GPU that is not here: what Triton and torch's compiler ask of it is answered by hand.

Only for a process of its own: from then on it believes in that GPU.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any
from unittest import mock

os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # processes that compile would find no GPU

import torch
import triton
from torch import fx
from torch._inductor.compile_fx import _recursive_post_grad_passes, fake_tensor_prop
from torch._inductor.debug import DebugContext
from torch._inductor.graph import GraphLowering
from torch._inductor.virtualized import V
from torch._subclasses.fake_tensor import FakeTensorMode
from triton.backends.compiler import GPUTarget

H200 = SimpleNamespace(
    name="H200",
    major=9,
    minor=0,
    multi_processor_count=132,
    total_memory=141 << 30,
    regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    warp_size=32,
    shared_memory_per_block=48 << 10,
    shared_memory_per_block_optin=227 << 10,
    shared_memory_per_multiprocessor=228 << 10,
    L2_cache_size=50 << 20,
    gcnArchName="",
)
_ANSWERS = {
    "torch.cuda.get_device_properties": H200,
    "torch.cuda.current_device": 0,
    "torch.cuda.device_count": 1,
    "torch.cuda.get_device_capability": (9, 0),
    "torch.cuda.get_rng_state": torch.zeros(16, dtype=torch.uint8),
    "torch.cuda.set_rng_state": None,
    "torch.cuda._lazy_init": None,
    "torch._subclasses.fake_tensor.init_gpu_context": None,
}


class Driver:
    """The least of a driver that Triton and Inductor ask for."""

    def get_current_target(self) -> GPUTarget:
        """An H100 or H200."""
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        """The first."""
        return 0


def pretend(driver: Driver | None = None) -> None:
    """Make this process believe in an H200, for good."""
    triton.runtime.driver.set_active(driver or Driver())
    for name, answer in _ANSWERS.items():
        mock.patch(name, return_value=answer).start()
    mock.patch("torch.cuda._get_device_properties", return_value=H200, create=True).start()


def lowered(
    graph: fx.GraphModule, inputs: Sequence[Any], mode: FakeTensorMode, **options: Any
) -> tuple[GraphLowering, str]:
    """What Inductor makes of a graph, and its code: Python, or, of ``cpp_wrapper``, C++.

    Args:
        graph: of standard operators, without weights of its own.
        inputs: fake, on ``cuda:0``.
        mode: of the inputs.
        options: of Inductor's lowering.
    """
    available = mock.patch("torch.cuda.is_available", return_value=True)
    with available, V.set_fake_mode(mode):
        fake_tensor_prop(graph, inputs)
        _recursive_post_grad_passes(graph, is_inference=True)
        lowering = GraphLowering(
            graph,
            example_inputs=inputs,
            is_inference=True,
            shape_env=mode.shape_env,
            **options,
        )
        with V.set_graph_handler(lowering), V.set_debug_handler(DebugContext()):
            lowering.run(*inputs)
            in_cpp = options.get("cpp_wrapper", False)
            code = (lowering.codegen_with_cpp_wrapper if in_cpp else lowering.codegen)()[0]
            return lowering, str(getattr(code, "value", code))
