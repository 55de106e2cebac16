"""The choice of a backend, by a clock of ours: explainers take the time that they are told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Any

import pytest
import torch

from combicam.engine.explain import streams as streams_module
from combicam.engine.explain import tuning
from combicam.engine.explain.explainer import Explainer
from combicam.engine.explain.explanation import Explanation
from combicam.engine.explain.tuning import SIZES, Tuner, _label, candidates
from combicam.export.preprocess import Preprocess

NEVER = {"compile": 1e9}


class Machine:
    """Backend -> seconds of a call and of an image; some explain otherwise, or not at all.

    Attributes:
        now: of its clock, seconds.
        calls: backend and images of every call.
    """

    def __init__(
        self,
        seconds: Mapping[str, tuple[float, float]],
        wrong: Sequence[str] = (),
        broken: Sequence[str] = (),
        start_s: Mapping[str, float] | None = None,
    ) -> None:
        self.seconds, self.wrong, self.broken = seconds, wrong, broken
        self.start_s = start_s or {}
        self.now = 0.0
        self.calls: list[tuple[str, int]] = []

    def clock(self) -> float:
        return self.now

    def explain(self, explainer: Any, n: int) -> Explanation:
        fixed, each = self.seconds[explainer.backend]
        threads = torch.get_num_threads() if explainer.backend == "serial" else 1
        self.now += (fixed + each * n) * threads
        self.calls.append((explainer.backend, n))
        maps = torch.linspace(0, 1, 12).reshape(1, 1, 3, 4).repeat(n, 1, 1, 1)
        if explainer.backend in self.wrong:
            maps = maps.flip(-1)
        ids = torch.zeros(n, 1, dtype=torch.int64)
        return Explanation(maps, ids, ids.float(), ids.float(), torch.zeros(n, 1, 2), ids == 1)


class Fake:
    def __init__(self, machine: Machine, backend: str) -> None:
        self.machine, self.backend = machine, backend

    def with_backend(self, backend: str) -> Fake:
        self.machine.now += self.machine.start_s.get(backend, 0.0)
        if backend in self.machine.broken:
            raise RuntimeError("no such operator\nat line 3")
        return Fake(self.machine, backend)


def tuned(
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    images: int = 10_000,
    sizes: Sequence[int] = SIZES["cpu"],
    nodes: int = 100,
    device: str = "cpu",
) -> tuple[Any, tuning.Tuning] | None:
    monkeypatch.setattr(tuning, "perf_counter", machine.clock)
    first, *others = machine.seconds
    fake, kind = Fake(machine, first), torch.device(device)
    tuner = Tuner(fake, first, nodes, machine.explain, images, device=kind)
    return tuner.tune(others, sizes)  # type: ignore[return-value]


def test_the_fastest_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of 8 share a call's fixed costs better than those of 4; those of 16 gain 2 % more."""
    machine = Machine({"eager": (0, 0.1), "openvino": (0.04, 0.05), "torchscript": (0, 0.07)})
    found = tuned(machine, monkeypatch)
    assert found is not None
    explainer, choice = found
    assert (explainer.backend, choice.backend, choice.batch_size) == ("openvino", "openvino", 16)
    assert choice.images_per_s["eager batch 4"] == pytest.approx(10)
    assert choice.images_per_s["openvino batch 16"] == pytest.approx(16 / 0.84, abs=0.01)
    assert choice.seconds <= 30
    assert str(choice).startswith("openvino in batches of 16: 19.1 images/s (eager batch 4 10, ")


def test_a_smaller_batch_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine({"eager": (0, 0.1)})
    machine.explain = (  # type: ignore[method-assign]
        lambda e, n, plain=machine.explain: (
            setattr(machine, "now", machine.now + 0.05 * n * n),
            plain(e, n),
        )[1]
    )
    found = tuned(machine, monkeypatch)
    assert found is not None
    assert found[1].batch_size == 1


@pytest.mark.parametrize("fault", ["wrong", "broken"])
def test_what_does_not_work_is_left(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    seconds = {"eager": (0, 0.1), "openvino": (0, 0.01), "onnxruntime": (0, 0.05)}
    found = tuned(Machine(seconds, **{fault: ["openvino"]}), monkeypatch)  # type: ignore[arg-type]
    assert found is not None
    assert found[1].backend == "onnxruntime"
    assert not any("openvino" in name for name in found[1].images_per_s)


def test_one_runtime_of_a_file_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine({"eager": (0, 0.1), "openvino": (0, 0.09), "onnxruntime": (0, 0.01)})
    found = tuned(machine, monkeypatch)
    assert found is not None
    assert found[1].backend == "openvino"
    assert "onnxruntime" not in {name for name, _ in machine.calls}


def test_memory_that_is_short_ends_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the run, which halves its batches."""
    machine = Machine({"eager": (1, 0.1)})
    plain, most = machine.explain, 8

    def limited(explainer: Any, n: int) -> Explanation:
        if n > most:
            raise torch.OutOfMemoryError
        return plain(explainer, n)

    machine.explain = limited  # type: ignore[method-assign]
    found = tuned(machine, monkeypatch)
    assert found is not None
    assert found[1].batch_size == 8
    most = 2
    assert tuned(machine, monkeypatch) is None


def test_short_work_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine({"eager": (0, 0.1), "openvino": (0, 0.01)})
    assert tuned(machine, monkeypatch, images=1_700) is None  # 170 s
    assert {name for name, _ in machine.calls} == {"eager"}


def test_time_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """20 s, or 3 % of the work; what compiles for longer is tried in long work alone."""
    seconds = {"eager": (0, 0.1), "slow": (0, 0.09), "compile": (0, 0.02)}
    slow = {"slow": 19.0}
    short = tuned(Machine(seconds, start_s=slow), monkeypatch, images=2_000)
    assert short is not None
    assert short[1].backend == "slow"
    assert short[1].seconds < 23
    long = tuned(Machine(seconds, start_s=slow), monkeypatch, images=50_000)
    assert long is not None
    assert long[1].backend == "compile"
    huge = tuned(Machine(seconds), monkeypatch, images=50_000, nodes=10_000)
    assert huge is not None
    assert huge[1].backend == "slow"


def test_a_size_that_was_named_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine({"eager": (1, 0.1), "openvino": (1, 0.01)})
    found = tuned(machine, monkeypatch, sizes=(2,))
    assert found is not None
    assert (found[1].backend, found[1].batch_size) == ("openvino", 2)
    assert {n for _, n in machine.calls} == {2}


def test_memory_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tuning._fits(0)
    assert not tuning._fits(1e15)
    monkeypatch.setattr(tuning, "_fits", lambda *_: False)
    found = tuned(Machine({"eager": (1, 0.01)}), monkeypatch)
    assert found is not None
    assert found[1].batch_size == 4


def test_a_gpu_gets_its_batch_size_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """``compile`` compiles once; what is left of memory is asked of the GPU."""
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1, 1))
    machine = Machine({"eager": (0.5, 0.01), "compile": (0.1, 0.005)})
    found = tuned(machine, monkeypatch, 100_000, SIZES["cuda"], device="cuda")
    assert found is not None
    assert (found[1].backend, found[1].batch_size) == ("compile", 256)
    assert {n for name, n in machine.calls if name == "compile"} == {256}
    assert {n for name, n in machine.calls if name == "eager"} == {128, 256}


def test_threads_that_gain_nothing_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    """A runtime that does not scale leaves half of the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        flat = tuned(Machine({"eager": (0, 0.1)}), monkeypatch)
        assert flat is not None
        assert flat[1].threads == 2
        assert torch.get_num_threads() == 4
        machine = Machine({"eager": (0, 0.1)})
        plain = machine.explain

        def scaling(explainer: Any, n: int) -> Explanation:
            machine.now += n / torch.get_num_threads()
            return plain(explainer, n)

        machine.explain = scaling  # type: ignore[method-assign]
        scaled = tuned(machine, monkeypatch, sizes=(1,))
        assert scaled is not None
        assert scaled[1].threads == 4
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("loss", "streams", "asked"), [(1.0, 1, None), (1.5, 8, None), (1.5, 2, 2), (1.0, 4, 4)]
)
def test_streams(
    monkeypatch: pytest.MonkeyPatch, loss: float, streams: int, asked: int | None
) -> None:
    """A call on n threads takes ``loss`` times an nth of one on a single thread."""
    machine = Machine({"eager": (0, 0), "openvino": (0, 0), "onnxruntime": (0, 0)})
    plain, lock = machine.explain, Lock()

    def explain(explainer: Any, n: int) -> Explanation:
        threads = torch.get_num_threads()
        work = n * (1.0 if explainer.backend == "eager" else 0.5)
        with lock:  # the calls of a round pass one after the other
            machine.now += work / threads / streams_module.streams() * (loss if threads > 1 else 1)
            return plain(explainer, n)

    machine.explain = explain  # type: ignore[method-assign]
    monkeypatch.setattr(tuning, "perf_counter", machine.clock)
    before = torch.get_num_threads()
    torch.set_num_threads(8)
    try:
        fake = Fake(machine, "eager")
        tuner = Tuner(fake, "eager", 100, explain, 10_000, at_once=asked)
        found = tuner.tune(["openvino", "onnxruntime"], (4,))
        assert "onnxruntime" not in {name for name, _ in machine.calls}
        assert found is not None and torch.get_num_threads() == 8
    finally:
        torch.set_num_threads(before)
    choice = found[1]
    assert (choice.streams, choice.threads, choice.backend) == (streams, 8, "openvino")
    label = f"{streams} x openvino batch 4" if streams > 1 else "openvino batch 4"
    together = 16 / (loss if streams < 8 else 1)
    assert choice.images_per_s[label] == pytest.approx(together, rel=0.01)
    assert (f", {streams} at the same time: {together:.3g} images/s" in str(choice)) == (
        streams > 1
    )
    assert choice.usual == pytest.approx(8 / loss, rel=0.01)
    assert set(choice.images_per_s) >= {_label("eager", 4, streams), "eager batch 4"}


def test_streams_that_memory_does_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = iter([0, 4 << 20])  # of the process: a MiB an image
    monkeypatch.setattr(tuning, "_used", lambda _: next(sizes))
    held: list[float] = []
    monkeypatch.setattr(tuning, "_fits", lambda needed, *_: held.append(needed) or needed < 9 << 20)
    machine = Machine({"eager": (0, 0.1)})
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        tuned(machine, monkeypatch, sizes=(4,))
    finally:
        torch.set_num_threads(before)
    assert held == [16 << 20, 8 << 20]


def network() -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    )


def test_candidates(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    from combicam import export

    explainer = Explainer(network(), (16, 16))
    found = candidates(explainer)
    assert found[:3] == ("openvino", "onnxruntime", "torchscript")
    assert candidates(Explainer(network(), (16, 16), method="scorecam")) == ()
    varying = Preprocess((16, 16), resize="short-side")
    assert candidates(Explainer(network(), preprocess=varying)) == ()
    export(explainer, tmp_path / "a.ts")
    assert candidates(Explainer.load(tmp_path / "a.ts")) == ()
    export(explainer, tmp_path / "a.onnx")
    file = Explainer.load(tmp_path / "a.onnx")
    assert set(candidates(file)) <= {"openvino"}
    images = torch.randn(3, 3, 16, 16)
    for backend in (*found, "auto"):
        if backend != "compile":
            other = explainer.with_backend(backend)
            torch.testing.assert_close(other(images).heatmaps, explainer(images).heatmaps)
            assert other.fingerprint() == explainer.fingerprint()
    for backend in candidates(file):
        torch.testing.assert_close(
            file.with_backend(backend)(images).heatmaps, file(images).heatmaps, atol=1e-4, rtol=0
        )
    with pytest.raises(ValueError, match="expected backend in"):
        explainer.with_backend("fast")
