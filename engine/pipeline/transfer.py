"""Copy batches to the device and results back, concurrently with the computation."""

from __future__ import annotations

import torch
from torch import Tensor

from combicam.engine.shards.quantise import QuantisedExplanation


class Transfer:
    """Copies in both directions, on CUDA each in its own stream.

    Args:
        device: that computes, in its current stream.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._up: torch.cuda.Stream | None = None
        self._down: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._up, self._down = torch.cuda.Stream(device), torch.cuda.Stream(device)

    def up(self, images: Tensor) -> Tensor:
        """Copy images to the device; on CUDA from pinned memory that is kept until they arrive."""
        if self._up is None:
            return images.to(self._device)
        with torch.cuda.stream(self._up):
            copied = images.to(self._device, non_blocking=True)
        stream = torch.cuda.current_stream(self._device)
        stream.wait_stream(self._up)
        copied.record_stream(stream)
        return copied

    def down(self, results: QuantisedExplanation, count: int) -> QuantisedExplanation:
        """Copy the first ``count`` to the CPU; on CUDA they are complete at :meth:`arrival`."""
        down = self._down
        if down is None:
            return results.to_host(count)
        down.wait_stream(torch.cuda.current_stream(self._device))

        def recorded(tensor: Tensor) -> Tensor:
            tensor.record_stream(down)
            return tensor

        with torch.cuda.stream(down):
            return results.map(recorded).to_host(count)

    def arrival(self) -> torch.cuda.Event | None:
        """Event when all results copied so far have arrived; None if there is none to wait for."""
        if self._down is None:
            return None
        event = torch.cuda.Event()
        event.record(self._down)
        return event
