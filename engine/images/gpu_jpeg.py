"""Decode and resize JPEGs on a GPU, a batch at once, by nvImageCodec; optional, not the default.

On an H200, whose engines for JPEG do the work, three pixels of 100,000 differ from libjpeg's, by
one level. Of 3,000 damaged files, nvImageCodec's CPU decoder took 13 that Pillow refuses. The
``decoder`` column says which decoder made a row's pixels.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from threading import local
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from combicam.engine.images.decode import Encoded
from combicam.engine.images.device_resize import device_resize
from combicam.export.preprocess import Preprocess
from combicam.kernels.jit import on_device, tl
from combicam.kernels.resample import launch_resample
from combicam.requirements import require

# Interpolate chroma as libjpeg does; nvJPEG repeats samples by default.
OPTIONS = ":fancy_upsampling=1"
_THREADS = 8  # that feed the engines
_CHANNELS = 3
# Decoded photos whose memory each thread keeps: the GPU's allocator gives back to the system what
# is free whenever a stream is waited for.
_KEPT_BYTES = 2**28


def nvimgcodec() -> Any:
    """Import nvImageCodec.

    Raises:
        MissingExtra: it is not installed.
    """
    return require("nvidia.nvimgcodec", extra="gpu-decode", operation="decode, decoder='gpu'")


class GpuDecoder:
    """Decodes JPEGs and resizes them to a model's input, all at once. Threads may share it: each
    gets a decoder, which has a stream of its own, and a stream of high priority to resize, since
    the GPU is busy explaining.

    Args:
        preprocess: of the model.
        device: the GPU.
        make: makes a decoder of nvImageCodec; default: of the GPU's engines for JPEG, or of its
            processors where it has none.

    Raises:
        ValueError: the device is not a GPU, or decodes no JPEG, or Triton is not installed.
        MissingExtra: nvImageCodec is not installed.
    """

    def __init__(
        self, preprocess: Preprocess, device: torch.device, make: Callable[[], Any] | None = None
    ) -> None:
        if device.type != "cuda" and make is None:
            raise ValueError(
                f"decode: expected a CUDA device for decoder='gpu', got {device}; use "
                "decoder='auto'"
            )
        self._codec = nvimgcodec()
        if tl is None:
            raise ValueError(
                "decode: expected Triton for decoder='gpu', got none; use decoder='auto'"
            )
        color = self._codec.ColorSpec.SRGB
        self._params = self._codec.DecodeParams(apply_exif_orientation=False, color_spec=color)
        self._preprocess, self._device = preprocess, device
        self._of_thread = local()
        self._make = make or self._maker()

    def __call__(self, photos: Sequence[Encoded]) -> list[Tensor | None]:
        """Decode and resize.

        Args:
            photos: of :func:`~combicam.engine.images.decode.decode_or_leave`.

        Returns:
            uint8 [H,W,3] of each, on the device and complete; None to leave it to another decoder,
            as all of them where memory is short.
        """
        if not photos:
            return []
        try:
            with self._stream() as stream:
                images = self._decoded([self._code_stream(photo.data) for photo in photos], stream)
                return self._resized(photos, images)
        except torch.OutOfMemoryError:  # nvImageCodec has memory that torch does not know of
            self._of_thread.images = []
            torch.cuda.empty_cache()
            return [None] * len(photos)

    def stack(self, photos: Sequence[Tensor]) -> Tensor:
        """uint8 [B,H,W,3] of those that it decoded, complete."""
        with self._stream():
            return torch.stack(list(photos))

    def upload(self, pixels: Any) -> Tensor:
        """Copy pixels that another decoder made, uint8 [H,W,3], to the device, complete."""
        with self._stream():
            return torch.from_numpy(pixels).to(self._device)

    @contextmanager
    def _stream(self) -> Iterator[torch.cuda.Stream | None]:
        """This thread's stream as the current one; in the end, all that it was told is done."""
        if self._device.type != "cuda":
            yield None
            return
        with on_device(self._device):
            if not hasattr(self._of_thread, "stream"):
                self._of_thread.stream = torch.cuda.Stream(self._device, priority=-1)
            with torch.cuda.stream(self._of_thread.stream):
                try:
                    yield self._of_thread.stream
                finally:  # also before what an error leaves behind is freed
                    self._of_thread.stream.synchronize()

    def _maker(self) -> Callable[[], Any]:
        kinds = self._codec.BackendKind
        file = io.BytesIO()
        Image.linear_gradient("L").convert("RGB").save(file, "JPEG")
        photo = self._codec.CodeStream(file.getvalue())
        for kind in (kinds.HW_GPU_ONLY, kinds.HYBRID_CPU_GPU):
            make = partial(
                self._codec.Decoder,
                device_id=self._device.index,
                max_num_cpu_threads=_THREADS,
                backends=[self._codec.Backend(kind)],
                options=OPTIONS,
            )
            with self._stream():
                if make().decode(photo, params=self._params) is not None:
                    return make
        raise ValueError(
            f"decode: expected a GPU that decodes JPEG for decoder='gpu', got {self._device}, "
            "which does not; is nvidia-nvjpeg installed? Or use decoder='auto'"
        )

    def _code_stream(self, data: Any) -> Any:
        try:
            return self._codec.CodeStream(data)
        except RuntimeError:  # a header that it does not understand
            return None

    def _decoded(self, photos: list[Any], stream: torch.cuda.Stream | None) -> list[Any]:
        """Decode into images of this thread, which its next call overwrites."""
        mine = self._of_thread
        if not hasattr(mine, "decoder"):
            mine.decoder, mine.images = self._make(), []
        known = [photo for photo in photos if photo is not None]
        if not known:
            return photos
        images = mine.images[: len(known)] if len(known) <= len(mine.images) else None
        number = 0 if stream is None else stream.cuda_stream
        found = mine.decoder.decode(known, images=images, params=self._params, cuda_stream=number)
        if images is None:
            mine.images = [image for image in found if image is not None]
        if sum(image.capacity for image in mine.images) > _KEPT_BYTES:
            mine.images = []
        rest = iter(found)
        return [photo and next(rest) for photo in photos]

    def _resized(self, photos: Sequence[Encoded], images: list[Any]) -> list[Tensor | None]:
        results: list[Tensor | None] = [None] * len(photos)
        on_gpu = self._device.type == "cuda"
        first, second, between = [], [], []  # freed memory is taken again in the stream's order
        for i, (photo, image) in enumerate(zip(photos, images, strict=True)):
            shape = (photo.height, photo.width, _CHANNELS)
            if image is None:
                continue
            found = image.__cuda_array_interface__ if on_gpu else image.__array_interface__
            if found["shape"] != shape:
                continue
            row = found["strides"][0] if found["strides"] else photo.width * _CHANNELS
            plan = device_resize(shape, row, photo.orientation, self._preprocess)
            between.append(torch.empty(plan.between, dtype=torch.uint8, device=self._device))
            result = torch.empty(plan.shape, dtype=torch.uint8, device=self._device)
            addresses = (found["data"][0], between[-1].data_ptr(), result.data_ptr())
            across, down = plan.strips(*addresses)
            first.append(across)
            second.append(down)
            results[i] = result
        if first:
            launch_resample((first, second), _CHANNELS, self._device)
        return results
