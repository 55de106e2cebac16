"""Explainers that workers make in other processes; they leave their process's number behind."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from fakes import FakeExplainer
from torch import Tensor

from combicam.engine.explain.explanation import Explanation
from combicam.engine.run.config import RunConfig


class Slow(FakeExplainer):
    """Takes its time, so that it can be killed meanwhile."""

    def __init__(self, pause: float = 0.15) -> None:
        super().__init__()
        self.pause = pause

    def __call__(self, images: Tensor, /) -> Explanation:
        time.sleep(self.pause)
        return super().__call__(images)


def slow(config: RunConfig) -> Any:
    pids = Path(config.output).with_name("pids")
    pids.mkdir(exist_ok=True)
    (pids / str(os.getpid())).touch()
    return Slow()


def other(config: RunConfig) -> Any:
    explainer = Slow()
    explainer.weights = "other"
    return explainer


def unlucky(config: RunConfig) -> Any:
    os.abort()


def other_machine(config: RunConfig) -> Any:
    return Slow()
