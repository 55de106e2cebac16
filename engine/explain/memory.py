"""Halve the batch when memory is not enough."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

T = TypeVar("T")


@dataclass
class BatchLimit:
    """How many items fit into memory at once.

    Attributes:
        most: of them; None as long as all that were asked for do.
        halvings: how often memory was not enough.
    """

    most: int | None = None
    halvings: int = 0

    def halve_on_oom(
        self, items: int, compute: Callable[[int], T], release: Callable[[], None] | None = None
    ) -> T:
        """Call a function with a size that fits: half as much again and again, for good.

        Args:
            items: most that can be asked for.
            compute: from a size, at most ``items``, to a result.
            release: called before another attempt; frees what is held besides.

        Raises:
            torch.OutOfMemoryError: one item does not fit.
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
            # Outside of the except clause: its traceback holds the tensors that did not fit.
            if release is not None:
                release()
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()
