"""The CAM head alone: our kernels, the torch reference, Inductor's fusion of it, and others'."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness import Contender, Result
from combicam.kernels.cam_head import cam_head_reference, launch_cam_head
from combicam.kernels.weigh import launch_weigh, weigh_reference

COPY = "copy of as many bytes"


@dataclass(frozen=True)
class HeadCase:
    """The target layers of one network.

    Attributes:
        layers: per layer (C, h, w).
        size: (H, W) of the heatmaps, pixels.
    """

    layers: tuple[tuple[int, int, int], ...]
    size: tuple[int, int]


def _repeated(*groups: tuple[int, int, int]) -> tuple[tuple[int, int, int], ...]:
    """(count, C, h) -> that many square layers."""
    return tuple((c, h, h) for count, c, h in groups for _ in range(count))


SMALL, LARGE = (224, 224), (300, 300)
CASES = {
    "resnet50": HeadCase(_repeated((1, 256, 56), (1, 512, 28), (1, 1024, 14), (1, 2048, 7)), SMALL),
    "efficientnet_b4": HeadCase(
        _repeated((2, 24, 150), (4, 32, 75), (4, 56, 38), (6, 112, 19))
        + _repeated((6, 160, 19), (8, 272, 10), (2, 448, 10)),
        LARGE,
    ),
    "convnext": HeadCase(_repeated((3, 96, 56), (3, 192, 28), (9, 384, 14), (3, 768, 7)), SMALL),
    "tiny": HeadCase(_repeated((2, 16, 12), (1, 24, 6)), (48, 48)),
}
# Work that is timed together is this many bytes, several times a cache.
ENOUGH = {"cuda": 400e6, "cpu": 64e6}


@dataclass(frozen=True)
class Inputs:
    """One batch: activations [B,C,h,w] and gradients [B,1,C,h,w] per layer, channels-last."""

    acts: list[Tensor]
    grads: list[Tensor]


def read_bytes(case: HeadCase, batch: int, dtype: torch.dtype) -> int:
    """Every activation and gradient once."""
    elements = sum(math.prod(layer) for layer in case.layers)
    return 2 * batch * elements * dtype.itemsize


def inputs_per_call(moved: int, device: torch.device) -> int:
    """Batches that are timed together."""
    return max(1, min(64, math.ceil(ENOUGH[device.type] / moved)))


def random_inputs(
    case: HeadCase, batch: int, dtype: torch.dtype, device: torch.device, seed: int
) -> Inputs:
    """Activations as after a ReLU, gradients of a thousandth."""
    generator = torch.Generator(device).manual_seed(seed)

    def random(c: int, h: int, w: int) -> Tensor:
        x = torch.randn(batch, h, w, c, generator=generator, device=device)
        return x.to(dtype).permute(0, 3, 1, 2)

    acts = [random(*layer).relu() for layer in case.layers]
    return Inputs(acts, [random(*layer)[:, None] * 1e-3 for layer in case.layers])


class Repeated:
    """Calls on several inputs, none of which is in a cache when its turn comes.

    On a GPU they are one CUDA graph, so that launches cost what they cost in production. Returns
    the first call's result.
    """

    def __init__(self, call: Callable[[Inputs], Any], inputs: list[Inputs], graphed: bool) -> None:
        self._calls = [partial(call, i) for i in inputs]
        self._graph: torch.cuda.CUDAGraph | None = None
        if graphed:
            self._capture()

    def _capture(self) -> None:
        for call in self._calls[:3]:
            call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._results = [call() for call in self._calls]
        self._graph = graph

    def __call__(self) -> Any:
        if self._graph is not None:
            self._graph.replay()
            return self._results[0]
        results = [call() for call in self._calls]
        return results[0]


def head_contenders(
    case: HeadCase, batch: int, dtype: torch.dtype, device: torch.device
) -> Iterator[Contender]:
    """Everything on the same inputs, each checked against the reference in float32."""
    cuda = device.type == "cuda"
    moved = read_bytes(case, batch, dtype)
    count = inputs_per_call(moved, device)
    inputs = [random_inputs(case, batch, dtype, device, seed) for seed in range(count)]
    options = (case.size, "gradcam", "sum", "map", True, 0.0, (), 1e-8, False)
    expected = cam_head_reference(inputs[0].acts, inputs[0].grads, *options)[0]

    def reference(i: Inputs) -> Tensor:
        return cam_head_reference(i.acts, i.grads, *options)[0]

    def weighed(i: Inputs) -> list[Tensor]:
        return [weigh_reference(a, g, "gradcam") for a, g in zip(i.acts, i.grads, strict=True)]

    def heatmap_error(found: Tensor) -> float:
        scale = 255 if found.dtype == torch.uint8 else 1
        return float((found.float() / scale - expected).abs().max())

    def maps_error(found: Tensor) -> float:
        maps = torch.cat([m.flatten() for m in weighed(inputs[0])])
        return float((found - maps).abs().max() / maps.abs().max())

    def contender(
        name: str, call: Callable[[Inputs], Any], check: Any, tolerance: float, graphed: bool = cuda
    ) -> Contender:
        return Contender(
            name, lambda: Repeated(call, inputs, graphed), batch * count, check, tolerance
        )

    buffers = [torch.empty(moved // 4, dtype=torch.float16, device=device) for _ in range(2)]
    copies = [Inputs(buffers, [])] * count
    yield Contender(
        COPY,
        lambda: Repeated(lambda i: i.acts[0].copy_(i.acts[1]), copies, cuda),
        batch * count,
    )
    if cuda:
        yield contender(
            "weigh: kernels", lambda i: launch_weigh(i.acts, i.grads, "gradcam"), maps_error, 1e-4
        )
        for out in (torch.float32, torch.uint8):
            name = str(out).removeprefix("torch.")
            yield contender(
                f"head: kernels, {name}",
                lambda i, out=out: launch_cam_head(i.acts, i.grads, *options, out)[0],
                heatmap_error,
                1e-4 if out == torch.float32 else 3e-3,
            )
    yield contender("weigh: reference", weighed, None, 0)
    yield contender("head: reference", reference, heatmap_error, 0)
    compiled = torch.compile(reference, mode="max-autotune-no-cudagraphs", dynamic=False)
    yield contender("head: reference, compiled", compiled, heatmap_error, 1e-3)
    yield contender(
        "head: pytorch-grad-cam", partial(_grad_cam_post, case.size), None, 0, graphed=False
    )


def _grad_cam_post(size: tuple[int, int], inputs: Inputs) -> Any:
    """What pytorch-grad-cam does after its backward: NumPy and cv2 on the host, layer by layer."""
    from pytorch_grad_cam import GradCAM

    cam = GradCAM.__new__(GradCAM)
    cam.target_layers = [None] * len(inputs.acts)
    cam.detach = True
    cam.uses_gradients = True
    cam.activations_and_grads = SimpleNamespace(
        release=lambda: None,
        activations=[a.float().cpu() for a in inputs.acts],
        gradients=[g[:, 0].float().cpu() for g in inputs.grads],
    )
    batch = inputs.acts[0].shape[0]
    blank = torch.empty(batch, 3, *size, device="meta")
    layers = cam.compute_cam_per_layer(blank, [None] * batch, False)
    return np.asarray(cam.aggregate_multi_layers(layers))


def head_table(results: list[Result]) -> str:
    """Markdown: time of a batch, bytes per second as a share of the copy's, ratio to the kernels.

    What is left of a row's time after the copy's is the head's own; a copy reads and writes half of
    the bytes each.
    """
    copy = next((r for r in results if r.name == COPY and r.p50), None)
    ours = next((r for r in results if r.name == "head: kernels, float32" and r.p50), None)
    lines = [
        "| | µs per batch (p20–p80) | of copy bandwidth | time / our head | max error |",
        "|---|---|---|---|---|",
    ]
    for r in results:
        if r.p50 is None or r.p20 is None or r.p80 is None:
            lines.append(f"| {r.name} | failed: {r.error} | | | |")
            continue
        share = f"{copy.p50 / r.p50:.0%}" if copy and copy.p50 else ""
        ratio = f"{r.p50 / ours.p50:.2f}" if ours and ours.p50 else ""
        error = "" if r.max_abs_err is None else f"{r.max_abs_err:.1e}"
        times = [1e6 * x / r.params["batches_per_call"] for x in (r.p20, r.p50, r.p80)]
        lines.append(
            f"| {r.name} | {times[1]:.0f} ({times[0]:.0f}–{times[2]:.0f}) | {share} | {ratio} "
            f"| {error} |"
        )
    read = results[0].params["bytes"] / 1e6
    return f"{read:.1f} MB of activations and gradients per batch\n\n" + "\n".join(lines)
