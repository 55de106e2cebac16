"""The joint graph on one device, one cumulative step a row, beside the compiled forward alone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.harness import Contender
from combicam import Explainer
from combicam.engine.explain.sessions import ModelSession
from combicam.export.trace.trace import JointGraph

FORWARD = "forward, compiled"
_PIECE = 32  # images of the reference at once


@dataclass(frozen=True)
class Setting:
    """What all rows share.

    Attributes:
        model: float32, eval.
        images: float32 [B,3,H,W] on the device.
        size: (H, W), pixels.
        layers: as in ``CamSpec``.
        dtype: of the fast rows.
    """

    model: nn.Module
    images: Tensor
    size: tuple[int, int]
    layers: str
    dtype: torch.dtype
    made: dict[torch.dtype, Explainer] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """Where everything runs."""
        return self.images.device

    def explainer(self, dtype: torch.dtype) -> Explainer:
        """Made once per dtype: tracing is not what is measured."""
        if dtype not in self.made:
            self.made[dtype] = Explainer(
                self.model, self.size, layers=self.layers, device=self.device, dtype=dtype
            )
        return self.made[dtype]

    def joint(self, dtype: torch.dtype) -> JointGraph:
        """The traced graph of an explainer."""
        session = self.explainer(dtype).session
        assert isinstance(session, ModelSession)
        return session.joint(session.top)


def replayed(call: Callable[[], Any]) -> Callable[[], Any]:
    """The call as a CUDA graph: its launches cost the host nothing. Elsewhere the call itself.

    What is returned keeps the call, whose inputs the graph reads at their addresses.
    """
    if not torch.cuda.is_available():
        return call
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call()

    def replay(read: Callable[[], Any] = call) -> Any:
        graph.replay()
        return result

    return replay


def _no_grad(call: Callable[..., Any], *args: Any) -> Callable[[], Any]:
    def run() -> Any:
        with torch.no_grad():
            return call(*args)

    return run


def _last(images: Tensor, dtype: torch.dtype) -> Tensor:
    return images.to(dtype).contiguous(memory_format=torch.channels_last)


def ladder(setting: Setting) -> Iterator[Contender]:
    """Forward alone, then the joint graph from eager float32 to a replayed CUDA graph."""
    images, dtype = setting.images, setting.dtype
    batch = len(images)
    pieces = [setting.explainer(torch.float32)(piece) for piece in images.split(_PIECE)]
    heatmaps = torch.cat([piece.heatmaps for piece in pieces])
    targets = torch.cat([piece.targets for piece in pieces])
    name = str(dtype).removeprefix("torch.")

    def heatmap_error(found: Any) -> float:
        maps = found.heatmaps if hasattr(found, "heatmaps") else found[3]
        return float((maps - heatmaps).abs().max())

    def row(what: str, prepare: Callable[[], Callable[[], Any]], exact: bool = False) -> Contender:
        # 16 bit rounds every activation: how far that moves a heatmap is a result, not a failure.
        return Contender(what, prepare, batch, heatmap_error, 2e-2 if exact else 1.0)

    def forward(compiled: bool) -> Callable[[], Callable[[], Any]]:
        def prepare() -> Callable[[], Any]:
            model = copy.deepcopy(setting.model).to(dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            call = torch.compile(model) if compiled else model
            run = _no_grad(call, _last(images, dtype))
            return replayed(run) if compiled else run

        return prepare

    def compiled_graph(module: nn.Module, graphed: bool) -> Callable[[], Any]:
        call = torch.compile(module, dynamic=False)
        run = _no_grad(call, _last(images, dtype), targets)
        return replayed(run) if graphed else run

    yield Contender(FORWARD, forward(True), batch)
    yield Contender("forward, eager", forward(False), batch)
    yield row(
        "joint graph, eager float32", lambda: lambda: setting.explainer(torch.float32)(images), True
    )
    yield row(f"… {name}", lambda: lambda: setting.explainer(dtype)(images, targets))
    yield row(
        "… compiled, reference head",
        lambda: compiled_graph(setting.joint(dtype).portable().module, False),
    )
    yield row("… head as one operator", lambda: compiled_graph(setting.joint(dtype).module, False))
    yield row("… replayed CUDA graph", lambda: compiled_graph(setting.joint(dtype).module, True))
    yield row("AOTInductor package", lambda: _packaged(setting, targets))


def _packaged(setting: Setting, targets: Tensor) -> Callable[[], Any]:
    packaged = Explainer(
        setting.model,
        setting.size,
        layers=setting.layers,
        device=setting.device,
        dtype=setting.dtype,
        backend="aoti",
    )
    return lambda: packaged(setting.images, targets)


def under_autocast(contenders: Iterator[Contender], dtype: torch.dtype) -> Iterator[Contender]:
    """Other libraries in 16 bit, the way that their users have."""
    for contender in contenders:

        def prepare(plain: Callable[[], Callable[[], Any]] = contender.prepare) -> Any:
            call = plain()

            def run() -> Any:
                cuda = torch.cuda.is_available()
                with torch.autocast("cuda", dtype) if cuda else nullcontext():
                    return call()

            return run

        yield Contender(
            f"{contender.name}, autocast", prepare, contender.images, contender.check, 1.0
        )
