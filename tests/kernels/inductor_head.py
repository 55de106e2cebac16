"""The code that Inductor generates around the head for a GPU that is not here.

Prints JSON; like compile_kernels.py this runs in a process of its own.
"""

from __future__ import annotations

import json
import re
from collections import Counter

import torch
from torch import Tensor
from torch._functorch.aot_autograd import aot_export_module
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.pretended_gpu import lowered, pretend
from combicam.kernels.cam_head import cam_head

LAYERS = [(256, 56, 56), (512, 28, 28), (1024, 14, 14), (2048, 7, 7)]


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
    return lowered(graph, tensors, mode)[1]


if __name__ == "__main__":
    pretend()
    call = generated().partition("def call(")[2]
    runs = re.findall(r"(\w+?)(?:_\d+)?\.run\(", call)
    print(json.dumps({"runs": Counter(runs), "buffers": call.count("empty_strided_cuda(")}))
