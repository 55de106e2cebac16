"""Other libraries and all our backends: same network, images, layers; each at its best batch."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from benchmarks.graph import CASES, Case, network
from benchmarks.harness import Contender, Result, measure
from combicam import Explainer
from combicam.engine.exporting import natural_noise
from combicam.export.probe import LayerInfo

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
BACKENDS = ("eager", "torchscript", "onnxruntime", "compile", "aoti")
LIBRARIES = ("pytorch-grad-cam", "torchcam", "captum", "one pass per layer")
PEERS = (*LIBRARIES, *(f"combicam, {backend}" for backend in BACKENDS))
# Of the median image; a ReLU at zero to rounding may differ between runtimes in some. Libraries
# that normalise each layer by itself enlarge such differences where a layer's map is small.
TOLERANCE, LIBRARY_TOLERANCE = 1e-2, 5e-2
_CHECKED = 4
_WORSE = 0.9  # of the best speed so far: larger batches are not tried

Explain = Callable[[Tensor], Any]


@dataclass(frozen=True)
class PeersConfig:
    """Images per second and memory of this and other libraries, each at its best batch size.

    Args:
        cases: which networks.
        peers: which libraries and backends.
        device: ``cpu`` or ``cuda``.
        rounds: how often each is timed, in turn; medians are reported.
        largest: batch that is tried.
        budget: seconds after which no further peer is begun; it is a row without a speed.
        output: where the JSON goes; decoding of images is in no figure.
    """

    cases: tuple[str, ...] = ("resnet50", "efficientnet_b4")
    peers: tuple[str, ...] = PEERS
    device: str = "cpu"
    rounds: int = 5
    largest: int = 16
    budget: float = 1200.0
    output: Path = field(default=Path("benchmarks/results/peers-cpu.json"))


@dataclass(frozen=True)
class Setting:
    """What all peers share.

    Attributes:
        case: network, size, layers.
        model: float32, eval, on the device.
        layers: the target layers.
        device: where everything runs.
    """

    case: Case
    model: nn.Module
    layers: tuple[LayerInfo, ...]
    device: torch.device

    @classmethod
    def of(cls, name: str, device: str) -> Setting:
        """The setting of a case."""
        case, place = CASES[name], torch.device(device)
        model = network(case).to(place)
        layers = Explainer(model, case.size, layers=case.layers).layers
        return cls(case, model, layers, place)

    @property
    def names(self) -> list[str]:
        """Of the target layers."""
        return [info.name for info in self.layers]

    def images(self, count: int, seed: int = 2) -> Tensor:
        """Photos' statistics, normalised, on the device."""
        return natural_noise(count, self.case.size, seed=seed).to(self.device)


def explain_with(peer: str, setting: Setting) -> Explain:
    """What a peer's user would call: images -> heatmaps (or what has them)."""
    if peer.startswith("combicam, "):
        return Explainer(
            setting.model,
            setting.case.size,
            layers=setting.names,
            backend=peer.removeprefix("combicam, "),
            device=setting.device,
        )
    make = {
        "pytorch-grad-cam": _pytorch_grad_cam,
        "torchcam": _torchcam,
        "captum": _captum,
        "one pass per layer": _one_pass_per_layer,
    }[peer]
    return make(copy.deepcopy(setting.model), setting)


def _pytorch_grad_cam(model: nn.Module, setting: Setting) -> Explain:
    from pytorch_grad_cam import GradCAM

    cam = GradCAM(model=model, target_layers=[model.get_submodule(n) for n in setting.names])
    return lambda images: cam(input_tensor=images, targets=None)


def _torchcam(model: nn.Module, setting: Setting) -> Explain:
    from torchcam.methods import GradCAM

    extractor = GradCAM(model, target_layer=setting.names)

    def explain(images: Tensor) -> Any:
        scores = model(images.clone().requires_grad_())
        cams = extractor(scores.argmax(1).tolist(), scores)
        return extractor.fuse_cams(cams, target_shape=setting.case.size)

    return explain


def _captum(model: nn.Module, setting: Setting) -> Explain:
    """Its Grad-CAM of each layer, upsampled and summed as Combi-CAM."""
    from captum.attr import LayerGradCam

    class Logprob(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, images: Tensor) -> Tensor:
            return self.model(images).log_softmax(1)

    wrapped = Logprob()
    cams = [LayerGradCam(wrapped, model.get_submodule(name)) for name in setting.names]

    def explain(images: Tensor) -> Tensor:
        with torch.no_grad():
            classes = model(images).argmax(1)
        maps = [cam.attribute(images, classes, relu_attributions=True).detach() for cam in cams]
        return _combined(maps, setting.case.size)

    return explain


def _one_pass_per_layer(model: nn.Module, setting: Setting) -> Explain:
    """The recipe of Combi-CAM's authors: a forward and a full backward for each layer."""

    def explain(images: Tensor) -> Tensor:
        maps = []
        for name in setting.names:
            kept: list[Tensor] = []
            hook = model.get_submodule(name).register_forward_hook(
                lambda _m, _a, output, kept=kept: kept.append(output)
            )
            probabilities = model(images).softmax(1)
            hook.remove()
            kept[0].retain_grad()
            model.zero_grad()
            probabilities.amax(1).sum().backward()
            grad = kept[0].grad
            assert grad is not None
            weights = grad.mean((2, 3), keepdim=True)
            maps.append((weights * kept[0].detach()).sum(1, keepdim=True).relu())
        return _combined(maps, setting.case.size)

    return explain


def _combined(maps: list[Tensor], size: tuple[int, int]) -> Tensor:
    """Upsampled, summed, and each image in [0, 1]: [B,H,W]."""
    grown = [interpolate(m, size, mode="bilinear", align_corners=True) for m in maps]
    total = torch.stack(grown).sum(0)[:, 0]
    low, high = total.amin((1, 2), keepdim=True), total.amax((1, 2), keepdim=True)
    return (total - low) / (high - low)


def heatmaps_of(found: Any) -> Tensor:
    """float32 [B,H,W] on the CPU of whatever a library returns."""
    if hasattr(found, "heatmaps"):
        return found.heatmaps[:, 0].float().cpu()
    if isinstance(found, np.ndarray | Tensor):
        return torch.as_tensor(found).float().cpu()
    return torch.stack([torch.as_tensor(np.asarray(f.cpu())) for f in found]).float()


def errors(peer: str, explain: Explain, setting: Setting) -> Tensor:
    """Largest difference from ours under the peer's semantics, of each of some images."""
    images = setting.images(_CHECKED, seed=7)
    if peer in ("pytorch-grad-cam", "torchcam"):
        ours = Explainer.preset(peer, setting.model, setting.case.size, layers=setting.names)
    else:
        ours = Explainer(setting.model, setting.case.size, layers=setting.names)
    found = torch.cat([heatmaps_of(explain(image[None])) for image in images])
    return (found - heatmaps_of(ours(images))).abs().amax((1, 2))


def host_bytes(peer: str, setting: Setting) -> int:
    """Bytes an image that cross from the device, until heatmaps are on the host.

    pytorch-grad-cam copies activations and gradients of every layer, and computes on the host;
    the others return float32 heatmaps; runs of ours bring uint8 ones, a quarter of these.
    """
    h, w = setting.case.size
    if peer != "pytorch-grad-cam":
        return 4 * h * w
    return sum(2 * 4 * i.channels * i.height * i.width for i in setting.layers)


def best_batch(explain: Explain, setting: Setting, largest: int) -> tuple[int, float]:
    """The batch size with the most images a second, and these, each tried once when warm."""
    best = (1, 0.0)
    for batch in (b for b in BATCHES if b <= largest):
        images = setting.images(batch)
        try:
            explain(images)
            _wait(setting.device)
            start = time.perf_counter()
            explain(images)
            _wait(setting.device)
        except torch.OutOfMemoryError:
            break
        speed = batch / (time.perf_counter() - start)
        if speed > best[1]:
            best = (batch, speed)
        elif speed < _WORSE * best[1]:
            break
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_mib(peer: str, case: str, device: str, batch: int) -> float | None:
    """Memory of two calls beyond what the network and its images take, in a process of its own."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.peers", peer, case, device]
    done = subprocess.run([*command, str(batch)], capture_output=True, text=True, check=False)
    if done.returncode:
        return None
    return float(json.loads(done.stdout.splitlines()[-1]))


def _peak_here(peer: str, case: str, device: str, batch: int) -> float:
    setting = Setting.of(case, device)
    explain, images = explain_with(peer, setting), setting.images(batch)
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        explain(images), explain(images)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _status("VmRSS")
    explain(images), explain(images)
    return (_status("VmHWM") - before) / 2**10


def _status(name: str) -> int:
    """KiB, of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def peers(config: PeersConfig, say: Callable[[str], None]) -> list[Result]:
    """Check, find the best batch, time in turn, measure memory; failures are rows."""
    end = time.monotonic() + config.budget
    rows: list[Result] = []
    for case in config.cases:
        setting = Setting.of(case, config.device)
        ready, late = [], []
        for peer in config.peers:
            if time.monotonic() > end:
                late.append(Result(peer, {"case": case}, error="not begun: the budget was spent"))
            else:
                ready.append(_contender(peer, setting, config.largest, say))
        found = measure(ready, {"case": case}, config.rounds, say)
        for contender, row in zip(ready, found, strict=True):
            row.params = {"case": case, "batch": contender.images}
            if row.error is None:
                row.params |= {
                    "peak_mib": peak_mib(row.name, case, config.device, contender.images),
                    "host_bytes": host_bytes(row.name, setting),
                }
        rows += [*found, *late]
    return rows


def _contender(peer: str, setting: Setting, largest: int, say: Callable[[str], None]) -> Contender:
    """Made and tuned now; what fails raises again when it is measured, and so becomes a row."""
    try:
        explain = explain_with(peer, setting)
        error = float(errors(peer, explain, setting).median())
        # One photo at a time is how the authors' code works.
        most = 1 if peer == "one pass per layer" else largest
        batch, speed = best_batch(explain, setting, most)
    except Exception as failure:
        problem = failure

        def fail() -> Callable[[], Any]:
            raise problem

        return Contender(peer, fail, 1)
    say(f"  {peer}: batch {batch}, {speed:.2f} images/s")
    images = setting.images(batch)
    tolerance = LIBRARY_TOLERANCE if peer in LIBRARIES else TOLERANCE
    return Contender(peer, lambda: lambda: explain(images), batch, lambda _: error, tolerance)


def peers_table(rows: list[Result], case: str) -> str:
    """Markdown: each peer's speed beside that of our best backend."""
    mine = [r for r in rows if r.params["case"] == case]
    ours = [r.images_per_s or 0 for r in mine if r.name.startswith("combicam")]
    best = max(ours, default=0)
    lines = [
        "| | images/s | ours is faster by | batch | peak MiB | KB to the host | map difference |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in mine:
        if r.images_per_s is None:
            lines.append(f"| {r.name} | failed: {r.error} | | | | | |")
            continue
        peak = r.params["peak_mib"]
        lines.append(
            f"| {r.name} | {r.images_per_s:.2f} | {best / r.images_per_s:.1f} | "
            f"{r.params['batch']} | {'' if peak is None else f'{peak:.0f}'} | "
            f"{r.params['host_bytes'] / 1e3:.0f} | {r.max_abs_err:.0e} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    asked = sys.argv[1:]
    print(_peak_here(asked[0], asked[1], asked[2], int(asked[3])))
