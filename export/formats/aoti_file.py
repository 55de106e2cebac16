"""Compile a joint graph into an AOTInductor package: a zip archive with code for one device.

Its description is user metadata of the package (``aot_inductor.metadata``), available from the
loaders of Python (``get_metadata()``) and C++ (``AOTIModelPackageLoader::get_metadata``), and to
any zip reader in ``data/aotinductor/model/*_metadata.json``.
"""

from __future__ import annotations

import json
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from combicam.errors import TraceError, first_line
from combicam.export.trace.origins import TORCH, check_portable, culprit
from combicam.export.trace.smooth import VIEWS
from combicam.export.trace.trace import JointGraph, example_inputs

METADATA_KEY = "combicam"
TORCH_KEY = "torch"
DEVICE_KEY = "AOTI_DEVICE_KEY"  # written by torch
TUNING_PIXELS = 64 * 224 * 224
OF_TORCH = frozenset({"aten", "prims", "inductor", "mkldnn", "mkl", "onednn", "quantized"})


def write_aoti(joint: JointGraph, path: Path, metadata: str) -> None:
    """Compile a joint graph for the device of its weights and any batch size >= 1.

    On CUDA the CAM head stays one operator, and Inductor embeds its Triton kernels in the package;
    elsewhere the package contains the head's standard operators. It runs without combicam, on the
    kind of processor that it was compiled on.

    Args:
        joint: the graph, lowered or not.
        path: ends with ``.pt2``.
        metadata: stored in the package under the key ``combicam``.

    Raises:
        TraceError: Inductor cannot compile the graph, there is no C++ compiler, or an operator
            would need combicam when the package runs.
    """
    from torch._inductor import aoti_compile_and_package

    inputs = example_inputs(joint)
    is_cuda = inputs[0].device.type == "cuda"
    if is_cuda:
        copies = joint.spec.targets * len(VIEWS[joint.spec.smooth])
        inputs = example_inputs(joint, tuning_batch(joint.signature.input_size, copies))
    module = joint.module if is_cuda else joint.portable().module
    check_portable(module, (*TORCH, "combicam"))
    batch = torch.export.Dim("batch", min=1)
    # Freezing is 1.2 times faster for ResNet-18 on a CPU, but 2.7 times slower for MobileNetV3.
    configs: dict[str, Any] = {
        "aot_inductor.metadata": {METADATA_KEY: metadata, TORCH_KEY: torch.__version__},
        # No size is assumed to be at least 2, but torch would refuse smaller ones at run time.
        "aot_inductor.check_lowerbound": False,
    }
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(
                module, inputs, dynamic_shapes=tuple({0: batch} for _ in inputs), strict=False
            )
            aoti_compile_and_package(program, package_path=str(path), inductor_configs=configs)
    except Exception as error:
        name = culprit(module, error)
        raise TraceError(
            f"export: AOTInductor could not compile {name or 'the graph'} ({first_line(error)}); "
            "it needs a C++ compiler such as g++, and on CUDA also the CUDA toolkit"
        ) from error
    foreign = _foreign_operators(path)
    if foreign:
        path.unlink()
        raise TraceError(
            f"export: expected only operators of torch, got {', '.join(foreign)}, which only "
            "a process with combicam could run; export to .onnx or .ts"
        )


def tuning_batch(size: tuple[int, int], copies: int = 1) -> int:
    """The batch whose shapes Inductor chooses and times a GPU's kernels for.

    A batch of 2 leaves a GPU idle, so that its timings are of launches. 64 photos of 224², or the
    largest power of two with no more pixels, which bounds the memory of the timings; at least 2.

    Args:
        size: (H, W) of the images, pixels.
        copies: how often the graph takes each image: its targets and views.
    """
    fitting = max(TUNING_PIXELS // (size[0] * size[1] * copies), 2)
    return min(1 << (fitting.bit_length() - 1), 64)


def read_aoti(path: Path) -> str | None:
    """Read a package's metadata without running it; None if combicam did not write it.

    Raises:
        zipfile.BadZipFile: not an archive.
    """
    return _metadata(path).get(METADATA_KEY)


def aoti_device(path: Path) -> torch.device:
    """The kind of device that a package was compiled for.

    Raises:
        zipfile.BadZipFile: not an archive.
    """
    return torch.device(_metadata(path).get(DEVICE_KEY, "cpu"))


def aoti_origin(path: Path) -> str:
    """The torch version and device that a package was compiled with, for error messages."""
    found = _metadata(path)
    machine = " ".join(found.get(f"AOTI_{key}", "") for key in ("MACHINE", "CPU_ISA"))
    device = found.get(DEVICE_KEY, "an unknown device")
    return f"torch {found.get(TORCH_KEY, 'of unknown version')} for {device} ({machine.strip()})"


def has_code(path: Path) -> bool:
    """Whether there is compiled code in a package: torch 2.11 crashes where there is none.

    Raises:
        zipfile.BadZipFile: not an archive.
    """
    with zipfile.ZipFile(path) as file:
        return any(Path(name).suffix in (".so", ".pyd") for name in file.namelist())


def _metadata(path: Path) -> dict[str, str]:
    with zipfile.ZipFile(path) as file:
        for name in file.namelist():
            if "/data/aotinductor/" in name and name.endswith("_metadata.json"):
                found: dict[str, str] = json.loads(file.read(name))
                return found
    return {}


def _foreign_operators(path: Path) -> list[str]:
    """Operators that the compiled code looks up by name at run time."""
    found: set[str] = set()
    with zipfile.ZipFile(path) as file:
        for name in file.namelist():
            if name.endswith(".json") and not name.endswith("_metadata.json"):
                nodes = json.loads(file.read(name)).get("nodes", [])
                found.update(node["node"]["target"] for node in nodes if "node" in node)
    return sorted(t for t in found if re.split(r"::|\.", _bare(t))[0] not in OF_TORCH)


def _bare(target: str) -> str:
    return target.removeprefix("torch.ops.")
