"""Where a measurement was made."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

PACKAGES = (
    "combicam",
    "torch",
    "torchvision",
    "timm",
    "triton",
    "onnx",
    "onnxruntime-gpu",
    "onnxruntime",
    "numpy",
    "pillow",
    "simplejpeg",
    "torchcodec",
    "opencv-python-headless",
    "grad-cam",
    "torchcam",
    "captum",
)


def environment() -> dict[str, Any]:
    """Machine, versions, commit, and whether the tree differs from it."""
    return {
        "python": platform.python_version(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "float32": _float32(),
        "versions": {name: v for name in PACKAGES if (v := _version(name))},
        "commit": _git("rev-parse", "--short", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
    }


def _float32() -> dict[str, str | None]:
    """Who may round float32 to TF32: what torch is set to, and what the driver is told.

    The library's own graphs do not follow torch's settings; other libraries do.
    """
    return {
        "matmul": torch.backends.cuda.matmul.fp32_precision,
        "convolution": torch.backends.cudnn.conv.fp32_precision,
        "NVIDIA_TF32_OVERRIDE": os.environ.get("NVIDIA_TF32_OVERRIDE"),
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _git(*arguments: str) -> str | None:
    try:
        found = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()
