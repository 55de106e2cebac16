"""Decode JPEG on a GPU by nvImageCodec; optional, and not the default.

Only its CPU decoder was compared with Pillow: undamaged files gave the same pixels, but of 3,000
damaged ones it decoded 13 that Pillow refuses. So use it for speed where damaged files are rare;
the ``decoder`` column says which decoder made a row's pixels.
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
# Interpolate chroma as libjpeg does; nvJPEG repeats samples by default.
OPTIONS = ":fancy_upsampling=1"
_threads = local()


def nvimgcodec() -> Any:
    """Import nvImageCodec.

    Raises:
        MissingExtra: it is not installed.
    """
    return require("nvidia.nvimgcodec", extra="gpu-decode", operation="decode, decoder='gpu'")


def check_gpu_decoding(device: torch.device) -> None:
    """Check that images can be decoded on the explainer's device.

    Raises:
        ValueError: it is not a GPU.
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
    """Decode an 8-bit grey or colour JPEG; files without an end marker are not tried.

    Args:
        data: the whole file.
        image: the same file, opened by Pillow and its header checked, but not loaded.
        decoder: of nvImageCodec; default: this thread's.

    Returns:
        uint8 [h,w,3] as stored, on the host; None to leave it to another decoder.

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
    """This thread's decoder, on its device; decoders are not thread-safe."""
    if not hasattr(_threads, "decoder"):
        _threads.decoder = codec.Decoder(max_num_cpu_threads=1, options=OPTIONS)
    return _threads.decoder
