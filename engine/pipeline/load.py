"""Read and decode inputs in a pool of threads, in order: the ``read`` and ``decode`` stages."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from time import perf_counter

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from combicam.engine.images.decode import (
    DecodeConfig,
    Encoded,
    decode_image,
    decode_or_leave,
)
from combicam.engine.images.formats import TooLargeError, UnsupportedError
from combicam.engine.inputs.entry import Entry
from combicam.engine.shards.row_format import Record
from combicam.engine.shards.status import DECODE_ERROR, MISSING, TOO_LARGE, UNSUPPORTED
from combicam.errors import DecodeError
from combicam.export.preprocess import Preprocess

_DEFAULT = DecodeConfig()
NVIMAGECODEC = "nvimagecodec"


@dataclass(frozen=True)
class Loaded:
    """One input, read.

    Attributes:
        record: what its row will say of it.
        pixels: uint8 [H,W,C]; None if there are none, or elsewhere.
        read_s, decode_s: seconds that it took.
        encoded: what is left to a GPU to decode, instead of pixels.
        on_gpu: pixels there, instead of those.
    """

    record: Record
    pixels: NDArray[np.uint8] | None
    read_s: float
    decode_s: float = 0.0
    encoded: Encoded | None = None
    on_gpu: Tensor | None = None


def load(
    entry: Entry,
    preprocess: Preprocess,
    config: DecodeConfig = _DEFAULT,
    for_gpu: bool = False,
) -> Loaded:
    """Read and decode one input; an error becomes the record's status.

    Args:
        entry: the input.
        preprocess: of the model.
        config: of decoding.
        for_gpu: leave what GPUs decode to one.
    """
    start = perf_counter()
    try:
        data = entry.read()
    except OSError as error:
        record = Record(entry, MISSING, f"read: {error.strerror or error}")
        return Loaded(record, None, perf_counter() - start)
    return decoded(entry, data, preprocess, config, perf_counter() - start, for_gpu)


def decoded(
    entry: Entry,
    data: bytes,
    preprocess: Preprocess,
    config: DecodeConfig,
    read_s: float = 0.0,
    for_gpu: bool = False,
) -> Loaded:
    """The same, once it is read."""
    start = perf_counter()
    pixels = None
    try:
        found = (decode_or_leave if for_gpu else decode_image)(data, preprocess, config)
    except TooLargeError as error:
        width, height = error.size or (None, None)
        record = Record(entry, TOO_LARGE, str(error), width, height)
    except UnsupportedError as error:
        record = Record(entry, UNSUPPORTED, str(error))
    except DecodeError as error:
        record = Record(entry, DECODE_ERROR, str(error))
    else:
        if isinstance(found, Encoded):
            width, height = found.photo
            record = Record(entry, width=width, height=height, decoder=NVIMAGECODEC)
            return Loaded(record, None, read_s, perf_counter() - start, found)
        pixels = found.pixels
        record = Record(
            entry,
            width=found.width,
            height=found.height,
            decoder=found.decoder,
            truncated=found.truncated,
        )
    return Loaded(record, pixels, read_s, perf_counter() - start)


def load_in_order(
    entries: Iterable[Entry],
    pool: Executor,
    window: int,
    preprocess: Preprocess,
    config: DecodeConfig = _DEFAULT,
    for_gpu: bool = False,
) -> Iterator[Loaded]:
    """Load with ``pool``, at most ``window`` items ahead of the consumer."""
    ahead: deque[Future[Loaded]] = deque()
    for entry in entries:
        ahead.append(pool.submit(load, entry, preprocess, config, for_gpu))
        if len(ahead) >= window:
            yield ahead.popleft().result()
    while ahead:
        yield ahead.popleft().result()
