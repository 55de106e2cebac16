"""Scores without maps, in torch and in ONNX Runtime."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from combicam import Explainer
from combicam.demo.model import load
from combicam.engine.evaluation.methods import another
from combicam.engine.explain import backends
from combicam.engine.explain import score_network as module
from combicam.engine.explain.score_network import score_network
from combicam.engine.explain.sessions import ModelSession


def session_of(model: nn.Module, **options: object) -> ModelSession:
    session = Explainer(model, input_size=(32, 48), device="cpu", **options).session
    assert isinstance(session, ModelSession)
    return session


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.SiLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(8, 5),
    ).eval()  # fmt: skip


@pytest.mark.parametrize("size", [(32, 48), (64, 80)])
@pytest.mark.parametrize("by_onnxruntime", [False, True])
def test_logits_are_the_models_own(size: tuple[int, int], by_onnxruntime: bool) -> None:
    model = small()
    network = score_network(session_of(model), by_onnxruntime)
    for batch in (3, 9):
        images = torch.randn(batch, 3, *size)
        with torch.no_grad():
            expected = model.double()(images.double()).float()
        model.float()
        torch.testing.assert_close(network(images), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", ["eager", "compile"])
def test_the_callers_autocast_does_not_reach_it(backend: str) -> None:
    """Nor, by the same way, do its settings for float32 on a GPU."""
    network = score_network(session_of(small(), backend=backend))
    images = torch.randn(3, 3, 32, 48)
    expected = network(images)
    with torch.autocast("cpu", torch.bfloat16):
        found = network(images)
    assert found.dtype == torch.float32 and torch.equal(found, expected)


@pytest.mark.parametrize("dtype", ["float32", "tf32"])
def test_float32_is_rounded_where_the_explainer_rounds_it(
    dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the outermost setting, which decides."""
    entered: list[bool] = []

    @contextmanager
    def noted(*devices: torch.device, tf32: bool = False) -> Iterator[None]:
        entered.append(tf32)
        yield

    explainer = Explainer(small(), (32, 48), device="cpu", dtype=dtype)
    for place in (module, backends):
        monkeypatch.setattr(place, "plain_arithmetic", noted)
    for call in (explainer, explainer.score_network, another(explainer, explainer.spec)):
        entered.clear()
        call(torch.randn(1, 3, 32, 48))
        assert entered[0] is (dtype == "tf32")


def test_a_trained_network_runs_in_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    run = module.onnxruntime_backend
    monkeypatch.setattr(module, "onnxruntime_backend", lambda *a: calls.append(a) or run(*a))
    loaded = load()
    session = Explainer(loaded, device="cpu").session
    assert isinstance(session, ModelSession)
    images = torch.randn(4, 3, *loaded.preprocess.input_size)
    with torch.no_grad():
        expected = loaded.module.eval()(images)
    torch.testing.assert_close(score_network(session, True)(images), expected, atol=1e-3, rtol=1e-4)
    assert len(calls) == 1


def test_a_network_with_other_logits_there_stays_in_torch(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def wrong(*_: object) -> object:
        return lambda inputs: [torch.zeros(len(inputs[0]), 5)]

    monkeypatch.setattr(module, "onnxruntime_backend", wrong)
    model, images = small(), torch.randn(2, 3, 32, 48)
    with caplog.at_level(logging.INFO):
        found = score_network(session_of(model), True)(images)
    assert "differ" in caplog.text
    with torch.no_grad():
        torch.testing.assert_close(found, model(images), atol=1e-5, rtol=1e-5)


class Erfinv(nn.Module):
    """An operator without an ONNX form."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.erfinv(x.tanh() * 0.9)


def test_a_network_that_cannot_be_written_stays_in_torch(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), Erfinv(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    images = torch.randn(2, 3, 32, 48)
    with caplog.at_level(logging.INFO):
        found = score_network(session_of(model.eval(), layers=["0"]), True)(images)
    assert "stay in torch" in caplog.text
    with torch.no_grad():
        torch.testing.assert_close(found, model(images), atol=1e-5, rtol=1e-5)
