"""Halve the batch when memory is short."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

T = TypeVar("T")


@dataclass
class BatchLimit:
    """Learns how many items fit into memory at once.

    Attributes:
        most: that fit; None until memory is short.
        halvings: how often memory was short.
    """

    most: int | None = None
    halvings: int = 0

    def halve_on_oom(
        self, items: int, compute: Callable[[int], T], release: Callable[[], None] | None = None
    ) -> T:
        """Call a function, halving its size until it fits into memory; the limit is kept.

        Args:
            items: largest size.
            compute: from a size, at most ``items``, to a result.
            release: called before another attempt, to free other memory.

        Raises:
            torch.OutOfMemoryError: a single item does not fit.
        """
        while True:
            size = min(self.most or items, items)
            try:
                return compute(size)
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
                self.most = size // 2
                self.halvings += 1
            # After the except clause, whose traceback keeps the tensors alive.
            if release is not None:
                release()
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()
