"""One network of the coverage table, in a process of its own: layers, graph, ONNX, parity."""

from __future__ import annotations

import itertools
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.architectures import ARCHITECTURES, Architecture
from combicam import Explainer, export
from combicam.engine.explain.artifact_export import natural_noise
from combicam.errors import first_line
from combicam.export.trace.layers import select_layers
from combicam.export.trace.probe import LayerInfo, call_name, module_name, probe
from combicam.export.trace.snapshot import snapshot

CLASSES = 12
IMAGES = 5  # neither the batch of the trace nor the one of the export
TOLERANCE = 1e-4  # of a heatmap's pixel, the worst image, both sides in float64
# Of the median image in float32, where a ReLU at zero to rounding is on here and off there: this
# much, or so many times what eager torch is off in float32 in its worst image.
ONNX_TOLERANCE = 1e-3
EAGER_TIMES = 4.0


@dataclass
class Coverage:
    """One row.

    Attributes:
        name: of the network.
        params: family, size (H, W), batch of the comparison, tolerances.
        blocks, stages: how many layers the rules found.
        last: the layer that stands for the network.
        trace_s: CPU seconds to trace the joint graph of all blocks in float64.
        max_abs_err: of its heatmaps against one backward pass a layer, both in float64.
        onnx_mb, onnx_s: size of the ONNX file, and CPU seconds to trace in float32 and write it.
        onnx_err: of the heatmaps in ONNX Runtime against float64: largest of the median image.
        onnx_max_err: of the worst image.
        eager_err, eager_max_err: the same two for eager torch in float32.
        flat: how many of the reference's heatmaps have no maximum.
        seconds: everything together, CPU seconds.
        error: what failed, the first line.
    """

    name: str
    params: dict[str, Any]
    blocks: int | None = None
    stages: int | None = None
    last: str | None = None
    trace_s: float | None = None
    max_abs_err: float | None = None
    onnx_mb: float | None = None
    onnx_s: float | None = None
    onnx_err: float | None = None
    onnx_max_err: float | None = None
    eager_err: float | None = None
    eager_max_err: float | None = None
    flat: int | None = None
    seconds: float = 0.0
    error: str | None = None
    _started: float = field(default_factory=time.process_time, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {key: value for key, value in asdict(self).items() if not key.startswith("_")}


def parameters(architecture: Architecture) -> dict[str, Any]:
    """What identifies a row beside its name."""
    return {
        "family": architecture.family,
        "size": list(architecture.size),
        "options": architecture.options,
        "batch": IMAGES,
        "tolerance": TOLERANCE,
        "onnx_tolerance": ONNX_TOLERANCE,
        "eager_times": EAGER_TIMES,
    }


def build(architecture: Architecture) -> nn.Module:
    """The network with random weights that fit each other: nothing is downloaded.

    What starts at zero (heads, the last norm of a residual branch) gets other values, and the
    statistics of batch norms are those of the images.
    """
    library, _, name = architecture.name.partition(":")
    torch.manual_seed(0)
    if library == "timm":
        import timm

        model: nn.Module = timm.create_model(name, num_classes=CLASSES, **architecture.options)
    else:
        import torchvision

        make = torchvision.models.get_model
        model = make(name, weights=None, num_classes=CLASSES, **architecture.options)
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    scales = {id(m.weight) for m in model.modules() if "Norm" in type(m).__name__ and _scale(m)}
    with torch.no_grad():
        for p in model.parameters():
            if not p.any():
                p.fill_(1) if id(p) in scales else p.normal_(std=0.1)
    for norm in norms:
        norm.momentum = None
        norm.reset_running_stats()
    model.train()
    with torch.no_grad():
        model(natural_noise(8, architecture.size, seed=1))
    return model.eval()


def _scale(module: nn.Module) -> bool:
    return isinstance(getattr(module, "weight", None), nn.Parameter)


def reference(
    model: nn.Module, layers: tuple[LayerInfo, ...], images: Tensor
) -> tuple[Tensor, Tensor]:
    """Combi-CAM with one backward pass a layer [B,H,W], and the classes [B]."""
    acts: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., Tensor]:
        calls = itertools.count(1)

        def hook(_module: nn.Module, _args: object, output: Tensor) -> Tensor:
            acts[call_name(name, next(calls))] = output
            return output.clone()  # in-place operators behind the layer must not change it

        return hook

    modules = dict.fromkeys(module_name(info.name) for info in layers)
    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in modules]
    try:
        logits = model(images.clone().requires_grad_())
    finally:
        for handle in handles:
            handle.remove()
    classes = logits.argmax(-1)
    chosen = F.one_hot(classes, logits.shape[-1]).bool()
    others = logits.masked_fill(chosen, -torch.inf).logsumexp(-1)
    score = -F.softplus(others - logits[chosen]).sum()  # log p, also where 1 - p rounds to nothing
    total = torch.zeros(len(images), 1, *images.shape[2:], dtype=images.dtype)
    for info in layers:
        (grad,) = torch.autograd.grad(score, acts[info.name], retain_graph=True)
        grid, slope = info.as_grid(acts[info.name].detach()), info.as_grid(grad)
        cam = (slope.mean((2, 3), keepdim=True) * grid).sum(1, keepdim=True).relu()
        total += F.interpolate(cam, images.shape[2:], mode="bilinear", align_corners=True)
    low, high = total.amin((2, 3), keepdim=True), total.amax((2, 3), keepdim=True)
    return torch.where(high > low, (total - low) / (high - low), 0.0)[:, 0], classes


def examine(architecture: Architecture, say: Callable[[Coverage], None]) -> Coverage:
    """All steps, each reported as it ends; the first that fails ends the row."""
    row = Coverage(architecture.name, parameters(architecture))

    def done() -> None:
        row.seconds = time.process_time() - row._started
        say(row)

    step = "build"
    try:
        model = build(architecture)
        done()
        step = "layers"
        frozen = snapshot(model)
        probed = probe(frozen, architecture.size)
        layers = select_layers(frozen, probed, "blocks")
        row.blocks, row.stages = len(layers), len(select_layers(frozen, probed, "stages"))
        row.last = layers[-1].name
        done()
        step = "trace"
        images = natural_noise(IMAGES, architecture.size, seed=2)
        exact = snapshot(model).double()
        started = time.process_time()
        explainer = Explainer(exact, architecture.size)
        row.trace_s = time.process_time() - started
        done()
        step = "parity in torch"
        expected, classes = reference(exact, layers, images.double())
        found = explainer(images, classes)
        row.flat = int((expected.amax((1, 2)) == 0).sum())
        row.max_abs_err = float((found.heatmaps[:, 0] - expected).abs().max())
        _check(row.max_abs_err, TOLERANCE, row.flat)
        done()
        step = "ONNX"
        eager, _ = reference(model, layers, images)
        errors = _worst(eager, expected)
        row.eager_err, row.eager_max_err = float(errors.median()), float(errors.max())
        errors = _worst(_onnx(model, architecture, images, classes, row), expected)
        row.onnx_err, row.onnx_max_err = float(errors.median()), float(errors.max())
        # With ReLUs at zero to rounding in most images, the worst of eager torch is the measure.
        allowed = max(ONNX_TOLERANCE, EAGER_TIMES * row.eager_max_err)
        _check(row.onnx_err, allowed, row.flat)
    except Exception as error:
        row.error = f"{step}: {first_line(error)}"[:300]
    done()
    return row


def _onnx(
    model: nn.Module, architecture: Architecture, images: Tensor, classes: Tensor, row: Coverage
) -> Tensor:
    """Heatmaps of the file in ONNX Runtime [B,H,W]."""
    with tempfile.TemporaryDirectory(prefix="coverage-") as folder:
        path = Path(folder) / "joint.onnx"
        started = time.process_time()
        export(Explainer(model, architecture.size), path, verify=False)
        row.onnx_s = time.process_time() - started
        row.onnx_mb = sum(file.stat().st_size for file in Path(folder).iterdir()) / 1e6
        return Explainer.load(path, device="cpu")(images, classes).heatmaps[:, 0]


def _worst(found: Tensor, expected: Tensor) -> Tensor:
    """The largest error of each image [B]."""
    return (found - expected).abs().amax((1, 2))


def _check(error: float, tolerance: float, flat: int) -> None:
    if flat == IMAGES:
        raise ArithmeticError("every heatmap is flat, there is nothing to compare")
    if not error <= tolerance:
        raise ArithmeticError(f"error {error:.3g} beyond {tolerance:g}")


def main(name: str, threads: int, limit: int) -> None:
    """Print the row as JSON after every step; the last line counts.

    Args:
        name: of the architecture.
        threads: of torch.
        limit: CPU seconds after which the system ends the process (SIGXCPU).
    """
    # Imports alone may have used more: at a hard limit the process would be killed without a name.
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (limit, hard))
    torch.set_num_threads(threads)
    examine(ARCHITECTURES[name], lambda row: print(json.dumps(row.to_dict()), flush=True))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
