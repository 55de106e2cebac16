"""Calls at the same time share the threads."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import current_thread
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fakes import configured, save_photos
from torch import nn

from combicam import ComputeConfig, Explainer, export
from combicam.engine.explain import backends
from combicam.engine.explain.streams import compute_alone, end_team, shared_cores, streams
from combicam.engine.pipeline import load as load_module
from combicam.engine.pipeline import pipeline as pipeline_module
from combicam.engine.runner import run_images


@pytest.fixture
def four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def test_threads_are_divided_and_given_back(four_threads: None) -> None:
    for count, threads in ((1, 4), (2, 2), (3, 1), (4, 1), (9, 1)):
        with shared_cores(count):
            with ThreadPoolExecutor(1) as pool:
                of_a_new_thread = pool.submit(torch.get_num_threads).result()
            assert (streams(), torch.get_num_threads(), of_a_new_thread) == (count, *2 * (threads,))
        assert (streams(), torch.get_num_threads()) == (1, 4)
    with pytest.raises(RuntimeError, match="inside"), shared_cores(2):
        raise RuntimeError("inside")
    assert (streams(), torch.get_num_threads()) == (1, 4)


def explainer(**options: Any) -> Explainer:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, 2), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return Explainer(nn.Sequential(*layers), (24, 32), layers="last", device="cpu", **options)


@pytest.mark.parametrize(("count", "threads"), [(1, 4), (2, 3), (4, 1)])
def test_onnxruntime_gets_the_threads_that_callers_leave(
    count: int,
    threads: int,
    four_threads: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    export(explainer(), tmp_path / "tiny.onnx", verify=0)
    made: list[Any] = []
    runtime = backends.onnxruntime()

    def session(path: str, options: Any, **rest: Any) -> Any:
        made.append(options)
        return runtime.InferenceSession(path, options, **rest)

    stand_in = SimpleNamespace(SessionOptions=runtime.SessionOptions, InferenceSession=session)
    monkeypatch.setattr(backends, "onnxruntime", lambda: stand_in)
    with shared_cores(count):
        backends.onnxruntime_backend(tmp_path / "tiny.onnx", torch.device("cpu"))
    assert [options.intra_op_num_threads for options in made] == [threads]


@pytest.mark.parametrize("backend", ["eager", "torchscript", "onnxruntime", "openvino"])
def test_explanations_do_not_depend_on_who_else_calls(backend: str, four_threads: None) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino")
    images = torch.rand(6, 5, 3, 24, 32, generator=torch.Generator().manual_seed(0))
    with shared_cores(4), ThreadPoolExecutor(4) as pool:
        tested = explainer(backend=backend)
        together = list(pool.map(tested, [batch for batch in images for _ in range(3)]))
    alone = explainer()
    for i, found in enumerate(together):
        expected = alone(images[i // 3])
        assert torch.equal(found.targets, expected.targets)
        torch.testing.assert_close(found.heatmaps, expected.heatmaps, atol=1e-4, rtol=0)


def threads_of_the_process() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def test_a_team_ends(four_threads: None) -> None:
    """The threads that computed for this one are gone; it computes with others, as before."""
    big = torch.rand(64, 1 << 14)
    expected = big.mul(2)
    with_team = threads_of_the_process()
    if not end_team():
        pytest.skip("needs GNU's OpenMP")
    assert threads_of_the_process() <= with_team - 3
    assert torch.equal(big.mul(2), expected) and torch.get_num_threads() == 4
    assert threads_of_the_process() >= with_team


def test_a_thread_that_computes_alone(four_threads: None) -> None:
    big = torch.rand(64, 1 << 14)
    big.mul(2)
    before = threads_of_the_process()

    def compute() -> tuple[bool, int, int]:
        done = compute_alone()
        big.mul(2)
        return done, torch.get_num_threads(), threads_of_the_process()

    with ThreadPoolExecutor(1) as pool:
        done, threads, after = pool.submit(compute).result()
    if not done:
        pytest.skip("needs GNU's OpenMP")
    assert threads == 1 and after == before + 1
    with ThreadPoolExecutor(1) as pool:  # another is as it was
        assert pool.submit(torch.get_num_threads).result() == 4
    assert torch.get_num_threads() == 4


def test_in_a_run_only_explaining_has_a_team(
    four_threads: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_photos(tmp_path / "in", 6)
    tested, threads = explainer(), {"load": set[int](), "explain": set[int]()}
    plain_load, plain_call = load_module.load, Explainer.__call__

    def load(*arguments: Any) -> Any:
        threads["load"].add(torch.get_num_threads())
        return plain_load(*arguments)

    def call(self: Explainer, *arguments: Any, **options: Any) -> Any:
        threads["explain"].add(torch.get_num_threads())
        return plain_call(self, *arguments, **options)

    monkeypatch.setattr(load_module, "load", load)
    monkeypatch.setattr(Explainer, "__call__", call)
    if not end_team():
        pytest.skip("needs GNU's OpenMP")
    ended: list[str] = []
    monkeypatch.setattr(pipeline_module, "end_team", lambda: ended.append(current_thread().name))
    assert run_images(configured(tmp_path, batch_size=2), tested).images == 6
    assert threads == {"load": {1}, "explain": {4}}
    assert ended == [current_thread().name]
    assert torch.get_num_threads() == 4


def test_no_stream_is_refused() -> None:
    with pytest.raises(ValueError, match="expected streams >= 1, got 0"):
        ComputeConfig(streams=0)
