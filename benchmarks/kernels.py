"""The CAM head alone: our kernels, the torch reference, Inductor's fusion of it, and others'."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness import (
    DTYPES,
    RESULTS,
    Contender,
    Result,
    check_device,
    known,
    measure,
    say,
    write,
)
from benchmarks.heads import (
    CASES,
    HeadCase,
    Inputs,
    Repeated,
    inputs_per_call,
    random_inputs,
    read_bytes,
)
from combicam.kernels.cam_head import cam_head_reference, launch_cam_head
from combicam.kernels.weigh import launch_weigh, weigh_reference

COPY = "copy of as many bytes"


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
            "weigh: kernels",
            lambda i: launch_weigh(i.acts, i.grads, "gradcam")[0],
            maps_error,
            1e-4,
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


@dataclass(frozen=True)
class KernelsConfig:
    """The CAM head: kernels (on a GPU), the torch reference, Inductor's fusion, pytorch-grad-cam.

    Args:
        device: ``cpu`` or ``cuda``; without a GPU there are no kernels to time.
        cases: NAME:BATCH, the target layers of a network at a batch size.
        dtype: of activations and gradients; channels-last.
        rounds: how often every contender is timed, in turn; medians are reported.
        threads: of torch on the CPU.
        budget: seconds after which no further case is begun.
        output: where the JSON goes.
    """

    device: str = "cpu"
    cases: tuple[str, ...] = (
        "resnet50:256",
        "resnet50:1",
        "resnet50:32",
        "efficientnet_b4:64",
        "efficientnet_b4:1",
        "convnext:64",
    )
    dtype: str = "bfloat16"
    rounds: int = 9
    threads: int = 2
    budget: float = float("inf")
    output: Path = RESULTS / "kernels.json"

    def __post_init__(self) -> None:
        known("kernels", tuple(case.partition(":")[0] for case in self.cases), CASES)
        check_device("kernels", self.device, self.dtype)


def run_kernels(config: KernelsConfig) -> None:
    """Run every case; correctness gates timing."""
    torch.set_num_threads(config.threads)
    started = time.monotonic()
    dtype, device = DTYPES[config.dtype], torch.device(config.device)
    rows: list[Result] = []
    for case in config.cases:
        name, _, batch = case.partition(":")
        params = {"case": name, "batch": int(batch), "dtype": config.dtype, "device": config.device}
        if time.monotonic() - started > config.budget:
            rows.append(Result("all", params, error=f"not begun: budget {config.budget:.0f} s"))
            continue
        head = CASES[name]
        moved = read_bytes(head, int(batch), dtype)
        count = inputs_per_call(moved, device)
        say(f"{case}: {params}")
        found = measure(
            head_contenders(head, int(batch), dtype, device),
            {**params, "bytes": moved, "batches_per_call": count},
            config.rounds,
            say,
            lambda now, done=rows: write(config.output, done + now),
        )
        rows = rows + found
        print(f"\n### {name}, batch {batch}, {config.dtype}\n\n{head_table(found)}\n", flush=True)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    write(config.output, rows)
