"""Run an explainer's model for its scores only."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, fx

from combicam.engine.explain.backends import onnxruntime_backend
from combicam.engine.explain.sessions import ModelSession
from combicam.export.formats.onnx_file import write_onnx_graph
from combicam.export.trace.arithmetic import plain_arithmetic
from combicam.export.trace.forward import trace_forward

Network = Callable[[Tensor], Tensor]
log = logging.getLogger(__name__)
_CHECKED = 8  # images
_TOLERANCE = 1e-4  # of logits, relative to the largest


def score_network(session: ModelSession, by_onnxruntime: bool = False) -> Network:
    """The model without maps, one graph for each image size, with batch normalisation folded.

    Args:
        session: of the model, traced now for its input size; compiled if the session compiles.
        by_onnxruntime: on a CPU, run float32 models in ONNX Runtime, which is several times faster
            but takes seconds to prepare. Its logits are compared with torch's on the first images;
            a network that it cannot run, or not alike, stays in torch.

    Returns:
        Normalised images [N,C,H,W] -> logits float32 [N,n].
    """
    graphs: dict[tuple[int, ...], Network] = {}
    on_cpu = session.device.type == "cpu" and session.backend != "compile"

    def make(images: Tensor) -> Network:
        channels, height, width = images.shape[1:]
        traced = trace_forward(session.module, session.spec, (height, width), channels)
        by_torch = _in_torch(traced.logits, compiled=session.backend == "compile")
        if by_onnxruntime and on_cpu and traced.signature.dtype == "float32":
            return _in_onnxruntime(traced.logits, images[:_CHECKED], by_torch) or by_torch
        return by_torch

    def forward(images: Tensor) -> Tensor:
        size = tuple(images.shape[2:])
        with torch.no_grad(), plain_arithmetic(session.device, tf32=session.tf32):
            if size not in graphs:
                graphs[size] = make(images)
            return graphs[size](images)

    if not by_onnxruntime:
        forward(torch.zeros(1, *session.signature.image_shape, device=session.device))
    return forward


def _in_torch(graph: fx.GraphModule, compiled: bool) -> Network:
    call = torch.compile(graph) if compiled else graph
    # Convolutions are fastest in this layout, on CPUs too.
    return lambda images: call(images.contiguous(memory_format=torch.channels_last))[0]


def _in_onnxruntime(graph: fx.GraphModule, images: Tensor, by_torch: Network) -> Network | None:
    """The graph in ONNX Runtime; None if it cannot be written, run, or gives other logits."""
    try:
        with tempfile.TemporaryDirectory(prefix="combicam-") as folder:
            path = Path(folder) / "scores.onnx"
            example = torch.zeros(2, *images.shape[1:])
            write_onnx_graph(graph, (example,), ("logits",), path)
            execute = onnxruntime_backend(path, torch.device("cpu"))
        found, expected = execute([images.float()])[0], by_torch(images)
    except Exception as error:  # whatever it is, torch has the scores
        log.info("scores stay in torch: %s", error)
        return None
    off = float((found - expected).abs().max())
    if not off <= _TOLERANCE * float(expected.abs().max().clamp_min(1)):
        log.info("scores stay in torch: those of ONNX Runtime differ by %.2g", off)
        return None
    return lambda batch: execute([batch.float()])[0]
