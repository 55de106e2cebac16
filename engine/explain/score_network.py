"""The network of an explainer, for its scores alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from combicam.engine.explain.sessions import ModelSession
from combicam.export.trace.forward import trace_forward

if TYPE_CHECKING:
    from combicam.engine.explain.explainer import Explainer

Network = Callable[[Tensor], Tensor]


def score_network(explainer: Explainer) -> Network:
    """Normalised images [N,3,H,W] -> logits float32 [N,n], without maps where that is possible.

    A network in memory becomes one graph of its scores for each size of images, batch
    normalisation folded in, compiled if the explainer is. An exported file holds scores and maps
    in one graph, and computes both.

    Args:
        explainer: of the network.
    """
    session = explainer.session
    if not isinstance(session, ModelSession):

        def from_file(images: Tensor) -> Tensor:
            return explainer(images).logits

        return from_file
    graphs: dict[tuple[int, ...], Network] = {}

    def forward(images: Tensor) -> Tensor:
        size = tuple(images.shape[2:])
        if size not in graphs:
            graph = trace_forward(session.module, explainer.spec, (size[0], size[1])).logits
            graphs[size] = torch.compile(graph) if session.backend == "compile" else graph
        with torch.no_grad():
            # Convolutions are fastest so, on CPUs too.
            return graphs[size](images.contiguous(memory_format=torch.channels_last))[0]

    forward(torch.zeros(1, 3, *explainer.input_size, device=explainer.device))  # traced now
    return forward
