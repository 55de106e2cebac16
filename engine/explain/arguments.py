"""Check an explainer's arguments before anything is traced."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from combicam.engine.explain.config import BACKENDS
from combicam.errors import first_line
from combicam.export.formats.aoti_file import aoti_device
from combicam.export.formats.artifact import Description
from combicam.export.models.models import LoadedModel
from combicam.export.preprocess import Preprocess
from combicam.export.spec import FORWARD_METHODS, check_choice
from combicam.export.trace.channels import input_channels
from combicam.export.trace.output import Inputs, Output, attach
from combicam.export.trace.snapshot import check_finite, snapshot
from combicam.requirements import onnxruntime

# TF32 is how CUDA computes with float32 values.
DTYPES = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def check_backend(backend: str) -> None:
    check_choice("Explainer", "backend", backend, BACKENDS)


def check_tf32(dtype: object, backend: str) -> None:
    if str(dtype) == "tf32" and backend in ("onnxruntime", "openvino", "aoti"):
        raise ValueError(
            "Explainer: expected backend 'eager', 'compile' or 'torchscript' with dtype 'tf32', "
            f"got {backend!r}, which has no such setting; use dtype='float32'"
        )


def check_chunk(chunk: int | None, method: str) -> None:
    if chunk is None:
        return
    if isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1:
        raise ValueError(f"Explainer: expected chunk as an int >= 1 or None, got {chunk!r}")
    if method not in FORWARD_METHODS:
        raise ValueError(
            f"Explainer: expected chunk with method in {list(FORWARD_METHODS)}, got {method!r}, "
            "which runs no changed images; leave it out"
        )


def check_channels(channels: int | None) -> None:
    if channels is None:
        return
    if isinstance(channels, bool) or not isinstance(channels, int) or channels < 1:
        raise ValueError(
            f"Explainer: expected channels as an int >= 1 or None, got {channels!r}; leave it out"
        )


def prepared(
    model: object,
    device: torch.device | str | None,
    dtype: torch.dtype | str | None,
    output: Output = None,
    inputs: Inputs = None,
) -> nn.Module:
    """A private copy of the model, moved and cast, from images to logits."""
    name = str(dtype).removeprefix("torch.") if dtype is not None else None
    if name is not None:
        check_choice("Explainer", "dtype", name, list(DTYPES))
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"Explainer: expected a torch.nn.Module, got {type(model).__name__}; for a file use "
            "Explainer.load(path)"
        )
    module = snapshot(model)
    attach(module, output, inputs)
    check_finite(module)
    with torch.inference_mode(False), torch.no_grad():
        if device is not None:
            module = module.to(named_device(device))
        if name is not None:
            module = module.to(DTYPES[name])
            check_finite(module)  # float16 may overflow
        if any(p.is_cuda for p in module.parameters()) and is_fast_last(module, name):
            module = module.to(memory_format=torch.channels_last)
    return module


def is_fast_last(module: nn.Module, precision: str | None) -> bool:
    """Whether a GPU convolves fastest channels-last: with its tensor cores, in 16 bit and TF32.

    cuDNN has IEEE's float32 for channels first, and would convert every activation there and back.
    """
    dtype = next((p.dtype for p in module.parameters()), torch.float32)
    return precision == "tf32" or dtype.itemsize == 2


def known_device(name: torch.device | str) -> torch.device:
    """The device of a name.

    Raises:
        ValueError: torch does not know the name.
    """
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise ValueError(
            f"device: expected 'cpu', 'cuda', 'cuda:1' or the like, got {str(name)!r}"
        ) from error


def named_device(name: torch.device | str) -> torch.device:
    """The device of a name, if it can be used; ``cuda`` is the current one, by its number.

    Raises:
        ValueError: this machine has no such device.
    """
    device = known_device(name)
    try:
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch without CUDA
        raise ValueError(
            f"device: expected one of this machine that torch can use, got {str(name)!r} "
            f"({first_line(error)}); see combicam doctor"
        ) from error
    return numbered(device)


def numbered(device: torch.device) -> torch.device:
    """``cuda`` as the current GPU, by its number, since another may be current later."""
    if device == torch.device("cuda") and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return device


def usable_device(name: str) -> torch.device:
    """The device of a name, or the CPU where this machine does not have it."""
    try:
        return named_device(name)
    except ValueError:
        return torch.device("cpu")


def chosen_preprocess(
    given: Preprocess | None,
    loaded: LoadedModel | None,
    input_size: tuple[int, int] | None,
    channels: int | None,
    module: nn.Module,
) -> Preprocess:
    """The preprocessing that is given, or the model's, or for a bare module the default."""
    known = given or (loaded.preprocess if loaded else None)
    if known is None:
        if input_size is None:
            raise ValueError(
                "Explainer: expected input_size=(H, W) in pixels, got None; a bare module does "
                "not say which size it was trained with"
            )
        size = Preprocess(input_size).input_size  # checked before the module runs
        found = input_channels(module, size) if channels is None else channels
        return Preprocess(size, channels=found)
    if channels not in (None, known.channels):
        raise ValueError(
            f"Explainer: expected channels={known.channels}, those of the preprocessing, got "
            f"{channels!r}; leave it out, or give a Preprocess(..., channels={channels!r})"
        )
    if known.resize == "cover":
        raise ValueError(
            "Explainer: expected resize 'squash', 'crop' or 'short-side', got 'cover', which "
            "scales images for five crops; choose 'crop', and --crops five in runs"
        )
    return known if input_size is None else known.resized(input_size)


def check_score(loaded: LoadedModel | None, score: str) -> None:
    wanted = loaded.score if loaded else None
    if loaded is not None and wanted is not None and score != wanted:
        raise ValueError(
            f"Explainer: expected score={wanted!r} for {loaded.name}, got {score!r}: its logits "
            f"are not log-probabilities; pass score={wanted!r} (--score {wanted})"
        )


def check_classes(description: Description) -> None:
    table, n = description.classes, description.signature.classes
    if table is not None and len(table) != n:
        raise ValueError(
            f"Explainer: expected a class table with {n} classes (the logits), got {len(table)}"
        )


def best_device(path: Path) -> torch.device:
    if path.suffix == ".pt2":
        return numbered(aoti_device(path))
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if path.suffix == ".onnx":
        ort = onnxruntime()

        if "CUDAExecutionProvider" not in ort.get_available_providers():
            return torch.device("cpu")
    return numbered(torch.device("cuda"))
