"""Read and decode inputs in a pool of threads, in order: the ``read`` and ``decode`` stages."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from combicam.engine.images.decode import DecodeConfig, decode_image
from combicam.engine.images.formats import TooLargeError, UnsupportedError
from combicam.engine.inputs.entry import Entry
from combicam.engine.shards.row_format import Record
from combicam.engine.shards.status import DECODE_ERROR, MISSING, TOO_LARGE, UNSUPPORTED
from combicam.errors import DecodeError
from combicam.export.preprocess import Preprocess

_DEFAULT = DecodeConfig()


@dataclass(frozen=True)
class Loaded:
    """A record, its pixels (uint8 [H,W,C]) if it has any, and the seconds they took."""

    record: Record
    pixels: NDArray[np.uint8] | None
    read_s: float
    decode_s: float = 0.0


def load(entry: Entry, preprocess: Preprocess, config: DecodeConfig = _DEFAULT) -> Loaded:
    """Read and decode one input; an error becomes the record's status."""
    start = perf_counter()
    try:
        data = entry.read()
    except OSError as error:
        record = Record(entry, MISSING, f"read: {error.strerror or error}")
        return Loaded(record, None, perf_counter() - start)
    middle = perf_counter()
    pixels = None
    try:
        decoded = decode_image(data, preprocess, config)
    except TooLargeError as error:
        width, height = error.size or (None, None)
        record = Record(entry, TOO_LARGE, str(error), width, height)
    except UnsupportedError as error:
        record = Record(entry, UNSUPPORTED, str(error))
    except DecodeError as error:
        record = Record(entry, DECODE_ERROR, str(error))
    else:
        pixels = decoded.pixels
        record = Record(
            entry,
            width=decoded.width,
            height=decoded.height,
            decoder=decoded.decoder,
            truncated=decoded.truncated,
        )
    return Loaded(record, pixels, middle - start, perf_counter() - middle)


def load_in_order(
    entries: Iterable[Entry],
    pool: Executor,
    window: int,
    preprocess: Preprocess,
    config: DecodeConfig = _DEFAULT,
) -> Iterator[Loaded]:
    """Load with ``pool``, at most ``window`` items ahead of the consumer."""
    ahead: deque[Future[Loaded]] = deque()
    for entry in entries:
        ahead.append(pool.submit(load, entry, preprocess, config))
        if len(ahead) >= window:
            yield ahead.popleft().result()
    while ahead:
        yield ahead.popleft().result()
