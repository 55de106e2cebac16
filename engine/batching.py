"""The ``batch`` stage: pixels of one shard become full batches."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from time import perf_counter

import torch
from torch import Tensor

from combicam.engine.loading import Loaded
from combicam.engine.shard_format import Record


@dataclass
class Batch:
    """Consecutive rows of a shard.

    Attributes:
        shard: index of the shard.
        records: the rows, failures included.
        images: uint8 [B,H,W,3] of the rows that can be explained; None when there are none. B is
            the same in all batches of a shard: the last is filled up with copies.
        count: how many of ``images`` are rows.
        is_last: whether the shard ends here.
        seconds: stage -> what this batch took.
    """

    shard: int
    records: list[Record] = field(default_factory=list)
    images: Tensor | None = None
    count: int = 0
    is_last: bool = False
    seconds: dict[str, float] = field(default_factory=dict)

    def add_seconds(self, stage: str, seconds: float) -> None:
        """Count time of a stage."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds


def even_batch_size(images: int, batch_size: int) -> int:
    """Size of the fewest batches, at most ``batch_size``, that share ``images`` evenly.

    It depends on a shard's number of inputs alone. So kernels see one shape whatever fails to
    decode (a bad image cannot change its neighbours' rounding), and hardly any filling is needed.
    """
    return math.ceil(images / math.ceil(images / batch_size))


def batches(
    shard: int, images: int, batch_size: int, loaded: Iterator[Loaded], pin: bool
) -> Iterator[Batch]:
    """Batches of a shard.

    Args:
        shard: its index.
        images: how many inputs it has; so many are taken from ``loaded``.
        batch_size: of full batches.
        loaded: in order.
        pin: use page-locked memory, for fast copies to a GPU.
    """
    batch = Batch(shard)
    for position in range(images):
        item = next(loaded)
        start = perf_counter()
        batch.records.append(item.record)
        batch.add_seconds("read", item.read_s)
        batch.add_seconds("decode", item.decode_s)
        if item.pixels is not None:
            if batch.images is None:
                shape = (batch_size, *item.pixels.shape)
                batch.images = torch.empty(shape, dtype=torch.uint8, pin_memory=pin)
            batch.images.numpy()[batch.count] = item.pixels
            batch.count += 1
        batch.is_last = position == images - 1
        batch.add_seconds("batch", perf_counter() - start)
        if batch.is_last or batch.count == batch_size:
            if batch.images is not None:
                batch.images[batch.count :] = batch.images[batch.count - 1].clone()
            yield batch
            batch = Batch(shard)
