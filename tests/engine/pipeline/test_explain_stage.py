"""The explain stage on a GPU: copies in streams of their own, batches replayed as CUDA graphs."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from threading import Barrier, Lock
from time import sleep
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from combicam import CamSpec, Explainer, LoadedModel, Preprocess, export
from combicam.engine.explain.sessions import SizedSessions
from combicam.engine.inputs.entry import Entry
from combicam.engine.pipeline import explain_stage
from combicam.engine.pipeline.batch import Batch
from combicam.engine.pipeline.channel import Channel
from combicam.engine.pipeline.cuda_graph import CudaGraph
from combicam.engine.pipeline.explain_stage import ExplainStage
from combicam.engine.run.work import ShardWork
from combicam.engine.shards.map_format import MapFormat, map_format
from combicam.engine.shards.quantise import QuantisedExplanation, quantise
from combicam.engine.shards.row_format import Record
from combicam.errors import RunError


def through(stage: ExplainStage, batches: list[Tensor], pin: bool) -> list[QuantisedExplanation]:
    inbox: Channel[Batch] = Channel(len(batches))
    for images in batches:
        records = [Record(Entry(f"{i}", f"/{i}")) for i in range(len(images))]
        images = images.pin_memory() if pin else images.clone()
        inbox.put(Batch(ShardWork(0), records, [*range(len(images))], images, len(images)))
    inbox.close()
    found = [item.results for item in stage.explained(inbox)]
    return [results for results in found if results is not None]


@pytest.mark.gpu
@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_batches_on_a_gpu_keep_their_results(
    cuda_graphs: bool, demo_model: LoadedModel, postcards: Callable[[int, int], Tensor]
) -> None:
    explainer = Explainer(demo_model, layers="stages", device="cuda", keep_layers=True)
    maps = map_format(explainer, "layers", None)
    cards = [postcards(8, 8 * i) for i in range(6)]
    found = through(ExplainStage(explainer, maps, cuda_graphs), cards, pin=True)
    for images, results in zip(cards, found, strict=True):
        expected = quantise(explainer(images), maps).to_host(len(images))
        torch.cuda.synchronize()
        assert torch.equal(results.targets, expected.targets)
        assert (results.heatmaps.int() - expected.heatmaps.int()).abs().max() <= 1


def test_batches_at_the_same_time_keep_their_order(fake: Any) -> None:
    """Three are explained together, or none: each waits for two others."""
    explainer = fake()
    together, lock, finished = Barrier(3), Lock(), []
    plain = explainer.__class__.__call__

    class Waiting(explainer.__class__):  # type: ignore[misc, name-defined]
        def __call__(self, images: Tensor, *rest: Any, **options: Any) -> Any:
            number = int(images[0, 0, 0, 0])
            together.wait(20)
            sleep(0.05 * (3 - number % 3))  # the last begun is the first to end
            with lock:
                finished.append(number)
            return plain(self, images, *rest, **options)

    explainer.__class__ = Waiting
    maps = MapFormat(1, (24, 32))
    images = torch.randint(0, 255, (9, 2, 24, 32, 3), dtype=torch.uint8)
    images[:, 0, 0, 0, 0] = torch.arange(9)
    found = through(ExplainStage(explainer, maps, streams=3), list(images), pin=False)
    assert sorted(finished) == list(range(9)) and finished != list(range(9))
    expected = through(ExplainStage(fake(), maps), list(images), pin=False)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.heatmaps, other.heatmaps) and torch.equal(one.targets, other.targets)


def test_an_error_of_one_batch_ends_the_others(fake: Any) -> None:
    explainer = fake()
    called: list[int] = []

    class Failing(explainer.__class__):  # type: ignore[misc, name-defined]
        def __call__(self, images: Tensor, *rest: Any, **options: Any) -> Any:
            called.append(1)
            raise ValueError("no such layer")

    explainer.__class__ = Failing
    stage = ExplainStage(explainer, MapFormat(1, (24, 32)), streams=2)
    batches = [torch.zeros(1, 24, 32, 3, dtype=torch.uint8)] * 50
    with pytest.raises(RunError, match="no such layer"):
        through(stage, batches, pin=False)
    assert len(called) < 10


def test_streams_need_a_cpu(fake: Any) -> None:
    explainer = fake()
    explainer.device = torch.device("cuda:0")
    with pytest.raises(ValueError, match="expected a CPU for streams 2, got cuda:0"):
        ExplainStage(explainer, MapFormat(1, (24, 32)), streams=2)


def test_cuda_graphs_need_a_gpu(fake: Any) -> None:
    with pytest.raises(ValueError, match="cuda_graphs, got cpu"):
        ExplainStage(fake(), MapFormat(1, (24, 32)), cuda_graphs=True)


@pytest.mark.parametrize("what", ["a file", "a backend", "a method"])
def test_what_cuda_graphs_cannot_hold(what: str, tmp_path: Path, fake: Any) -> None:
    """Also where no configuration has refused it: in Ray Data, or with the backend left open."""
    explainer = fake()
    if what == "a method":
        explainer.spec = CamSpec(method="scorecam")
    else:
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        explainer = Explainer(model, (16, 16), device="cpu")
        explainer = explainer.with_backend("onnxruntime")
        if what == "a file":
            export(explainer, tmp_path / "model.onnx")
            explainer = Explainer.load(tmp_path / "model.onnx", device="cpu")
    explainer.device = torch.device("cuda:0")
    with pytest.raises(ValueError, match=r"expected cuda_graphs or .*(file|backend|method) .*both"):
        ExplainStage(explainer, MapFormat(1, (16, 16)), cuda_graphs=True)


def test_the_explainers_device_is_current_where_maps_are_made_and_stored(
    fake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton launches on the current one, of the thread that explains."""
    explainer, current, seen = fake(), threading.local(), []

    @contextmanager
    def on_device(device: torch.device) -> Iterator[None]:
        current.device = device
        yield
        current.device = None

    def stored(*arguments: Any) -> Any:
        seen.append(getattr(current, "device", None))
        return quantise(*arguments)

    monkeypatch.setattr(explain_stage, "on_device", on_device)
    monkeypatch.setattr(explain_stage, "quantise", stored)
    images = torch.zeros(2, 24, 32, 3, dtype=torch.uint8)
    for streams in (1, 2):
        through(ExplainStage(explainer, MapFormat(1, (24, 32)), streams=streams), [images], False)
    assert seen == [explainer.device] * 2


def test_a_graph_is_told_the_session_that_it_reads(
    monkeypatch: pytest.MonkeyPatch, fake: Any
) -> None:
    """That of the images' size, which would be dropped when others are used."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    sized = Preprocess((16, 16), resize="short-side", side_step=8)
    explainer = Explainer(model, preprocess=sized, device="cpu")
    told: list[Any] = []
    monkeypatch.setattr(explain_stage, "CudaGraph", lambda explain, weights: told.append(weights))
    monkeypatch.setattr(explain_stage, "Transfer", lambda device: None)
    explainer.device = torch.device("cuda:0")
    ExplainStage(explainer, MapFormat(1, (16, 16)), cuda_graphs=True)
    [weights] = told
    for size in ((16, 16), (16, 24)):
        assert weights(torch.zeros(1, *size, 3)) is explainer.session_at(size)


def test_launches_that_cannot_be_captured_are_made(fake: Any, caplog: Any) -> None:
    stage = ExplainStage(fake(), MapFormat(1, (24, 32)))
    captures: list[int] = []

    def refuse(images: Tensor, *_: object) -> None:
        captures.append(len(images))
        raise RuntimeError("operation not permitted when stream is capturing")

    stage._cuda_graph = CudaGraph(refuse, lambda images: images)  # type: ignore[arg-type]
    stage._cuda_graph._capture = refuse  # type: ignore[assignment, method-assign]
    images = [torch.full((2, 24, 32, 3), i, dtype=torch.uint8) for i in range(3)]
    found = through(stage, images, pin=False)
    plain = ExplainStage(fake(), MapFormat(1, (24, 32)))
    expected = through(plain, images, pin=False)
    assert captures == [2] and len(found) == 3
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.heatmaps, other.heatmaps)
    [told] = [r for r in caplog.records if r.message == "cuda_graphs_off"]
    assert "not permitted when stream is capturing" in told.fields["reason"]


def test_the_stage_delivers_in_order_and_lets_go_of_images(fake: Any) -> None:
    batches = [
        torch.randint(0, 256, (n, 24, 32, 3), generator=torch.Generator().manual_seed(n)).byte()
        for n in (3, 1, 2)
    ]
    explainer = fake()
    maps = MapFormat(1, (24, 32))
    found = through(ExplainStage(explainer, maps), batches, pin=False)
    for images, results in zip(batches, found, strict=True):
        assert torch.equal(results.heatmaps, quantise(explainer(images), maps).heatmaps)


class FakeGraph:
    """Replays by calling the captured function again; counts what is alive."""

    alive = 0

    def __init__(self) -> None:
        FakeGraph.alive += 1

    def __del__(self) -> None:
        FakeGraph.alive -= 1

    def replay(self) -> None:
        """Nothing to do: the results of this fake do not change."""


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """How graphs are captured, where no GPU is."""
    captures: list[tuple[Any, ...]] = []

    @contextmanager
    def capture(*args: Any, **kwargs: Any) -> Iterator[None]:
        captures.append((args[1:], kwargs))
        yield

    stream = SimpleNamespace(wait_stream=lambda other: None)
    for name, value in {
        "Stream": lambda device: stream,
        "current_stream": lambda device: stream,
        "stream": lambda stream: nullcontext(),
        "graph": capture,
        "graph_pool_handle": lambda: (1, 2),
        "CUDAGraph": FakeGraph,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return captures


def test_graphs_are_few_and_keep_what_they_read(captures: list[tuple[Any, ...]]) -> None:
    class Weights:
        pass

    kept: weakref.WeakSet[Weights] = weakref.WeakSet()

    def weights(images: Tensor) -> Weights:
        made = Weights()
        kept.add(made)
        return made

    results = SimpleNamespace(map=lambda f: results)
    graph = CudaGraph(lambda images: results, weights, limit=2)  # type: ignore[arg-type, return-value]
    for size in (4, 8, 4, 16, 4, 8):
        graph(torch.zeros(1, size, size, 3))
    # 4, 8, 16 instead of 8, and 8 again instead of 16.
    assert len(captures) == 4 and len(kept) == 2 and FakeGraph.alive == 2
    assert {args[0] for args, _ in captures} == {(1, 2)}  # one pool, and one stream
    assert len({id(args[1]) for args, _ in captures}) == 1
    assert all(options == {"capture_error_mode": "thread_local"} for _, options in captures)
    graph.forget()
    assert not kept and FakeGraph.alive == 0


def test_sizes_that_are_replayed_keep_their_sessions(captures: list[tuple[Any, ...]]) -> None:
    """Whichever is used is kept, in both; and none besides."""
    traced: list[tuple[int, int]] = []

    class Session:
        def at(self, size: tuple[int, int]) -> Session:
            traced.append(size)
            return Session()

    sessions = SizedSessions(Session(), limit=2)  # type: ignore[arg-type]
    results = SimpleNamespace(map=lambda f: results)
    graph = CudaGraph(
        lambda images: results,  # type: ignore[arg-type, return-value]
        lambda images: sessions.at((images.shape[1], images.shape[2])),
        limit=2,
    )
    for size in (4, 8, 4, 4, 16, 4, 4, 8, 4):
        graph(torch.zeros(1, size, size, 3))
        read = [captured.weights for captured in graph._captured.values()]
        assert read == list(sessions._sessions.values())
    assert traced == [(4, 4), (8, 8), (16, 16), (8, 8)] and len(captures) == 4
