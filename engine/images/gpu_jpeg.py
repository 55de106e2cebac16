"""Decode JPEG on a GPU by nvImageCodec; optional, and no part of the default.

Without a GPU only its CPU decoder could be tried: all undamaged files gave Pillow's pixels, and of
3,000 damaged ones it took 13 for whole that Pillow refuses. So what is asked for here is speed
where damaged files are rare; the ``decoder`` column tells whose pixels a row's are.
"""

from __future__ import annotations

from threading import local
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from combicam.engine.images.jpeg import JPEGS
from combicam.requirements import require

_MODES = ("RGB", "L")
# Chroma between samples is interpolated as libjpeg does; nvJPEG's default repeats samples.
OPTIONS = ":fancy_upsampling=1"
_threads = local()


def nvimgcodec() -> Any:
    """The module.

    Raises:
        MissingExtra: it is not installed.
    """
    return require("nvidia.nvimgcodec", extra="gpu-decode", operation="decode, decoder='gpu'")


def check_gpu_decoding(device: torch.device) -> None:
    """Whether photos can be decoded where they are explained.

    Raises:
        ValueError: it is no GPU.
        MissingExtra: nvImageCodec is not installed.
    """
    if device.type != "cuda":
        raise ValueError(
            f"decode: expected a CUDA device for decoder='gpu', got {device}; use decoder='auto'"
        )
    nvimgcodec()


def decode_jpeg_on_gpu(
    data: bytes, image: Image.Image, decoder: Any = None
) -> NDArray[np.uint8] | None:
    """Decode a JPEG in 8 bits of grey or colour; what has no end is not even tried.

    Args:
        data: the whole file.
        image: the same, opened by Pillow, whose header was checked; not loaded.
        decoder: of nvImageCodec; default: this thread's own.

    Returns:
        uint8 [h,w,3] as stored, on the host; None for another decoder.

    Raises:
        MissingExtra: nvImageCodec is not installed.
    """
    if image.format not in JPEGS or image.mode not in _MODES or b"\xff\xd9" not in data[-65536:]:
        return None
    codec = nvimgcodec()
    params = codec.DecodeParams(apply_exif_orientation=False, color_spec=codec.ColorSpec.SRGB)
    found = (decoder or _decoder(codec)).decode(codec.CodeStream(data), params=params)
    if found is None:
        return None
    pixels = np.asarray(found.cpu())
    width, height = image.size
    return pixels if pixels.shape == (height, width, 3) else None


def _decoder(codec: Any) -> Any:
    """This thread's, on this thread's device; they are not for several at once."""
    if not hasattr(_threads, "decoder"):
        _threads.decoder = codec.Decoder(max_num_cpu_threads=1, options=OPTIONS)
    return _threads.decoder
