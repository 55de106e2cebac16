"""Copy batches to the device and results back, beside the computation."""

from __future__ import annotations

import torch
from torch import Tensor

from combicam.engine.shards.quantise import QuantisedExplanation


class Transfer:
    """Copies in both directions; on CUDA each in a stream of its own.

    Args:
        device: where is computed, in its current stream.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._up: torch.cuda.Stream | None = None
        self._down: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._up, self._down = torch.cuda.Stream(device), torch.cuda.Stream(device)

    def up(self, images: Tensor) -> Tensor:
        """Images on the device; on CUDA from pinned memory that stays until they arrive."""
        if self._up is None:
            return images.to(self._device)
        with torch.cuda.stream(self._up):
            there = images.to(self._device, non_blocking=True)
        stream = torch.cuda.current_stream(self._device)
        stream.wait_stream(self._up)
        there.record_stream(stream)
        return there

    def down(self, results: QuantisedExplanation, count: int) -> QuantisedExplanation:
        """The first ``count`` on the CPU; on CUDA only once :meth:`arrival` has come."""
        down = self._down
        if down is None:
            return results.to_host(count)
        down.wait_stream(torch.cuda.current_stream(self._device))

        def lent(tensor: Tensor) -> Tensor:
            tensor.record_stream(down)
            return tensor

        with torch.cuda.stream(down):
            return results.map(lent).to_host(count)

    def arrival(self) -> torch.cuda.Event | None:
        """Marks that everything sent down so far has arrived; None where nothing is to wait for."""
        if self._down is None:
            return None
        event = torch.cuda.Event()
        event.record(self._down)
        return event
