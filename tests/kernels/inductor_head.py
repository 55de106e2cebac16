"""The code that Inductor generates around the head for a GPU that is not here.

Prints JSON. What torch asks the GPU for is answered by hand; like compile_kernels.py this runs in
a process of its own.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from types import SimpleNamespace
from unittest import mock

os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # processes that compile would find no GPU

import torch
import torch._dynamo.utils
import torch._inductor.lowering
import triton
from torch import Tensor
from torch._functorch.aot_autograd import aot_export_module
from torch._inductor.compile_fx import _recursive_post_grad_passes, fake_tensor_prop
from torch._inductor.debug import DebugContext
from torch._inductor.graph import GraphLowering
from torch._inductor.virtualized import V
from torch._subclasses.fake_tensor import FakeTensorMode
from triton.backends.compiler import GPUTarget

from combicam.kernels.cam_head import cam_head

LAYERS = [(256, 56, 56), (512, 28, 28), (1024, 14, 14), (2048, 7, 7)]
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
ANSWERS = {
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
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0


class Doubled(torch.nn.Module):
    """Activations that nothing has stored yet, as after a fused ReLU."""

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        half = len(tensors) // 2
        acts = [a * 2 for a in tensors[:half]]
        grads = [g[:, None] for g in tensors[half:]]
        return tuple(cam_head(acts, grads, (224, 224), keep_layers=False, dtype=torch.uint8))


def generated() -> str:
    """Inductor's Python."""
    mode = FakeTensorMode()
    with mode:
        tensors = [
            torch.empty(3, *shape, dtype=torch.bfloat16, device="cuda:0").to(
                memory_format=torch.channels_last
            )
            for shape in LAYERS
        ] * 2
    graph, _ = aot_export_module(Doubled(), tuple(tensors), trace_joint=False)
    available = mock.patch("torch.cuda.is_available", return_value=True)
    with available, V.set_fake_mode(mode):
        fake_tensor_prop(graph, tensors)
        _recursive_post_grad_passes(graph, is_inference=True)
        lowering = GraphLowering(graph, example_inputs=tensors, is_inference=True)
        with V.set_graph_handler(lowering), V.set_debug_handler(DebugContext()):
            lowering.run(*tensors)
            code = lowering.codegen()[0]
    return str(getattr(code, "value", code))


if __name__ == "__main__":
    triton.runtime.driver.set_active(Driver())
    for name, answer in ANSWERS.items():
        mock.patch(name, return_value=answer).start()
    mock.patch("torch.cuda._get_device_properties", return_value=H200, create=True).start()
    call = generated().partition("def call(")[2]
    runs = re.findall(r"(\w+?)(?:_\d+)?\.run\(", call)
    print(json.dumps({"runs": Counter(runs), "buffers": call.count("empty_strided_cuda(")}))
