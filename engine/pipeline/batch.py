"""Collect the images of a shard in full batches: the ``batch`` stage."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from time import perf_counter

import torch
from torch import Tensor

from combicam.engine.pipeline.load import Loaded
from combicam.engine.run.work import ShardWork
from combicam.engine.shards.row_format import Record


@dataclass
class Batch:
    """Rows of a shard whose images have the same size.

    Attributes:
        work: the shard.
        records: the rows, failures included.
        rows: row numbers in the shard.
        images: uint8 [B,H,W,C] of the rows that can be explained; None if there are none. B is
            the same in all batches of a shard: the last one is padded with copies.
        count: how many of ``images`` are rows, not padding.
        is_last: whether this is the last batch of the shard.
        seconds: stage -> seconds that this batch took.
        decoded: images on a GPU, uint8 [H,W,C], until all are there.
    """

    work: ShardWork
    records: list[Record] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    images: Tensor | None = None
    count: int = 0
    is_last: bool = False
    seconds: dict[str, float] = field(default_factory=dict)
    decoded: list[Tensor] = field(default_factory=list)

    def add_seconds(self, stage: str, seconds: float) -> None:
        """Add to the time of a stage."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

    def take_rows(self, other: Batch) -> None:
        """Append the rows of a batch without images."""
        self.records += other.records
        self.rows += other.rows
        for stage, seconds in other.seconds.items():
            self.add_seconds(stage, seconds)


def even_batch_size(images: int, batch_size: int) -> int:
    """Size, at most ``batch_size``, of the fewest batches that divide ``images`` evenly.

    It depends only on a shard's number of inputs. So kernels see one shape whichever images fail
    to decode (a bad image cannot change its neighbours' rounding), and little padding is needed.
    """
    return math.ceil(images / math.ceil(images / batch_size))


def batches(
    work: ShardWork,
    rows: Sequence[int],
    batch_size: int,
    loaded: Iterator[Loaded],
    pin: bool,
    stack: Callable[[list[Tensor]], Tensor] = torch.stack,
) -> Iterator[Batch]:
    """Batches of a shard, one being filled for each image size.

    Args:
        work: the shard.
        rows: row numbers of the next items of ``loaded``.
        batch_size: of full batches.
        loaded: the images, in order.
        pin: use page-locked memory, for fast copies to a GPU.
        stack: makes a batch of images that are on a GPU already.
    """
    waiting: dict[tuple[int, ...], Batch] = {}
    latest = Batch(work)  # also takes failed rows, which have no size
    for row in rows:
        item = next(loaded)
        start = perf_counter()
        image = item.pixels if item.on_gpu is None else item.on_gpu
        if image is not None:
            shape = tuple(image.shape)
            batch = waiting.get(shape) or waiting.setdefault(shape, Batch(work))
            if latest.count == 0:
                batch.take_rows(latest)
            latest = batch
            if isinstance(image, Tensor):
                latest.decoded.append(image)
            else:
                if latest.images is None:
                    size = (batch_size, *shape)
                    latest.images = torch.empty(size, dtype=torch.uint8, pin_memory=pin)
                latest.images.numpy()[latest.count] = image
            latest.count += 1
        latest.records.append(item.record)
        latest.rows.append(row)
        latest.add_seconds("read", item.read_s)
        latest.add_seconds("decode", item.decode_s)
        latest.add_seconds("batch", perf_counter() - start)
        if row != rows[-1] and latest.count == batch_size:
            del waiting[shape]
            yield _filled(latest, batch_size, stack)
            latest = Batch(work)
    rest = list(waiting.values())
    if latest.records and latest.count == 0:
        rest.append(latest)
    rest[-1].is_last = True
    for batch in rest:
        yield _filled(batch, batch_size, stack)


def _filled(batch: Batch, batch_size: int, stack: Callable[[list[Tensor]], Tensor]) -> Batch:
    """With copies of the last image where there are none, and all of them in ``images``."""
    missing = batch_size - batch.count
    if batch.decoded:
        batch.images = stack(batch.decoded + batch.decoded[-1:] * missing)
        batch.decoded = []
    elif batch.images is not None and missing:
        batch.images[batch.count :] = batch.images[batch.count - 1].clone()
    return batch
