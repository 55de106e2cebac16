"""Run an explainer's model for its scores only."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from combicam.engine.explain.sessions import ModelSession
from combicam.export.trace.forward import trace_forward

Network = Callable[[Tensor], Tensor]


def score_network(session: ModelSession) -> Network:
    """The model without maps, one graph for each image size, with batch normalisation folded.

    Args:
        session: of the model, traced now for its input size; compiled if the session compiles.

    Returns:
        Normalised images [N,3,H,W] -> logits float32 [N,n].
    """
    graphs: dict[tuple[int, ...], Network] = {}

    def forward(images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        if (height, width) not in graphs:
            graph = trace_forward(session.module, session.spec, (height, width)).logits
            graphs[height, width] = torch.compile(graph) if session.backend == "compile" else graph
        with torch.no_grad():
            # Convolutions are fastest in this layout, on CPUs too.
            return graphs[height, width](images.contiguous(memory_format=torch.channels_last))[0]

    forward(torch.zeros(1, 3, *session.input_size, device=session.device))
    return forward
