"""ONNX Runtime reads and writes torch's tensors in place; its memory errors are torch's."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime as ort
import pytest
import torch
from torch import nn

from combicam import Explainer, export
from combicam.engine.explain import backends

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)]
    path = tmp_path_factory.mktemp("file") / "model.onnx"
    export(Explainer(nn.Sequential(*layers), (20, 24), keep_layers=True), path)
    return path


def test_outputs_are_those_of_a_plain_run(file: Path) -> None:
    session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    execute = backends.onnxruntime_execute(session, CPU)
    for batch in (3, 1, 5):
        images = torch.randn(batch, 20, 24, 3).permute(0, 3, 1, 2)  # not contiguous
        targets = torch.full((batch, 1), -1)
        plain = {"images": images.contiguous().numpy(), "targets": targets.numpy()}
        first, again = execute([images, targets]), execute([images, targets])
        for found, other, expected in zip(first, again, session.run(None, plain), strict=True):
            assert torch.equal(found, torch.from_numpy(expected))
            assert torch.equal(found, other) and found.data_ptr() != other.data_ptr()


@pytest.mark.parametrize(
    "message",
    [
        "BFCArena: Failed to allocate memory for requested buffer of size 9",
        "CUDA failure 2: out of memory ; GPU=0 ; expr=cudaMalloc((void**)&p, size);",
        "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0",
        "CUDNN failure 2: CUDNN_STATUS_ALLOC_FAILED ; GPU=0",
    ],
)
def test_memory_that_is_short_is_told_as_torch_does(message: str, file: Path) -> None:
    real = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])

    def fail(_binding: object) -> None:
        raise RuntimeError(message)

    session = SimpleNamespace(
        get_inputs=real.get_inputs,
        get_outputs=real.get_outputs,
        io_binding=real.io_binding,
        run_with_iobinding=fail,
    )
    execute = backends.onnxruntime_execute(session, CPU)
    with pytest.raises(torch.OutOfMemoryError, match=re.escape(message)):
        execute([torch.zeros(2, 3, 20, 24), torch.full((2, 1), -1)])


@pytest.mark.parametrize("takes", [True, False])
def test_options_of_a_gpu(takes: bool, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """float32 as IEEE has it; no search at every batch size; no doubling of memory; torch's stream,
    if it is taken."""
    given: list[Any] = []
    ours = SimpleNamespace(cuda_stream=4660)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: ours)
    used: list[Any] = []
    monkeypatch.setattr(
        backends, "onnxruntime_execute", lambda session, device, stream: used.append(stream)
    )

    def make(path: str, options: Any, providers: Any) -> Any:
        given.extend(providers)
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return SimpleNamespace(
            get_providers=lambda: ["CUDAExecutionProvider"],
            get_provider_options=lambda: {
                "CUDAExecutionProvider": {"has_user_compute_stream": str(int(takes))}
            },
            get_inputs=session.get_inputs,
            get_outputs=session.get_outputs,
        )

    fake = SimpleNamespace(
        SessionOptions=ort.SessionOptions,
        InferenceSession=make,
        get_available_providers=lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
    )
    monkeypatch.setattr(backends, "onnxruntime", lambda: fake)
    backends.onnxruntime_backend(file, torch.device("cuda", 1))
    (name, options), last = given
    assert (name, last) == ("CUDAExecutionProvider", "CPUExecutionProvider")
    assert options == {
        "device_id": 1,
        "user_compute_stream": "4660",
        "use_tf32": 0,
        "cudnn_conv_algo_search": "HEURISTIC",
        "arena_extend_strategy": "kSameAsRequested",
    }
    assert used == [ours if takes else None]


@pytest.mark.parametrize("has_stream", [True, False])
def test_a_call_on_a_gpu_waits_for_its_inputs(
    has_stream: bool, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the stream; where that is ONNX Runtime's own, on the host."""
    done: list[str] = []
    real = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    bound = SimpleNamespace(
        bind_input=lambda *_: done.append("bound"),
        bind_output=lambda *_: None,
        synchronize_outputs=lambda: done.append("complete"),
    )
    session = SimpleNamespace(
        get_inputs=lambda: real.get_inputs()[:1],
        get_outputs=real.get_outputs,
        io_binding=lambda: bound,
        run_with_iobinding=lambda _: done.append("run"),
    )
    torchs = SimpleNamespace(synchronize=lambda: done.append("host"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: torchs)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda size, dtype, device: empty(size, dtype=dtype))
    images = SimpleNamespace(to=lambda device: torch.zeros(2, 3, 20, 24), contiguous=lambda: None)
    stream = SimpleNamespace(
        wait_stream=lambda other: done.append("stream" if other is torchs else "another")
    )
    gpu = torch.device("cuda", 0)
    execute = backends.onnxruntime_execute(session, gpu, stream if has_stream else None)  # type: ignore[arg-type]
    assert [len(found) for found in execute([images])] == [2] * len(real.get_outputs())  # type: ignore[list-item]
    assert done == ["bound", "stream" if has_stream else "host", "run", "complete"]
