"""Decode on a GPU what was left to it, in batches: part of the ``decode`` stage."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from time import perf_counter

from combicam.engine.explain.streams import compute_alone
from combicam.engine.images.decode import DecodeConfig
from combicam.engine.images.gpu_jpeg import GpuDecoder
from combicam.engine.pipeline.load import Loaded, decoded
from combicam.export.preprocess import Preprocess

# Photos that are decoded at once, and their pixels (of 3 bytes on the GPU).
_PHOTOS, _PIXELS = 128, 2**26
# Batches in the making, each by a thread: they wait for a GPU that explains.
_AHEAD = 3


def decoded_on_gpu(
    loaded: Iterable[Loaded], decoder: GpuDecoder, preprocess: Preprocess, config: DecodeConfig
) -> Iterator[Loaded]:
    """The same items in order, with all pixels on the GPU.

    Args:
        loaded: some of which may be encoded.
        decoder: of the GPU.
        preprocess: of the model.
        config: of decoding what the GPU declines, on the CPU.
    """

    def finish(chunk: list[Loaded]) -> list[Loaded]:
        return _finished(chunk, decoder, preprocess, config)

    ahead: deque[Future[list[Loaded]]] = deque()
    with ThreadPoolExecutor(_AHEAD, "combicam-decode", compute_alone) as pool:
        for chunk in _chunks(loaded):
            ahead.append(pool.submit(finish, chunk))
            if len(ahead) == _AHEAD:
                yield from ahead.popleft().result()
        while ahead:
            yield from ahead.popleft().result()


def _chunks(loaded: Iterable[Loaded]) -> Iterator[list[Loaded]]:
    chunk: list[Loaded] = []
    pixels = 0
    for item in loaded:
        # Arrays are in memory that is written again.
        if item.encoded is not None:
            pixels += item.encoded.width * item.encoded.height
            item = replace(item, encoded=replace(item.encoded, data=bytes(item.encoded.data)))
        elif item.pixels is not None:
            item = replace(item, pixels=item.pixels.copy())
        chunk.append(item)
        if len(chunk) == _PHOTOS or pixels >= _PIXELS:
            yield chunk
            chunk, pixels = [], 0
    if chunk:
        yield chunk


def _finished(
    chunk: list[Loaded], decoder: GpuDecoder, preprocess: Preprocess, config: DecodeConfig
) -> list[Loaded]:
    start = perf_counter()
    left = [item.encoded for item in chunk if item.encoded is not None]
    found = iter(decoder(left))
    share = (perf_counter() - start) / max(1, len(left))
    items = []
    for item in chunk:
        if item.encoded is not None and (pixels := next(found)) is not None:
            item = replace(item, on_gpu=pixels, encoded=None, decode_s=item.decode_s + share)
        elif item.encoded is not None:
            data, entry = item.encoded.data, item.record.entry
            item = decoded(entry, data, preprocess, config, item.read_s)
        if item.pixels is not None:
            item = replace(item, pixels=None, on_gpu=decoder.upload(item.pixels))
        items.append(item)
    return items
