"""Define what the runner needs of an explainer."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from combicam.engine.explain.explanation import Explanation
from combicam.export.classes.classes import ClassTable
from combicam.export.preprocess import Preprocess
from combicam.export.spec import CamSpec
from combicam.export.trace.probe import LayerInfo


class BatchExplainer(Protocol):
    """A callable from uint8 photos to explanations; ``combicam.Explainer`` is one."""

    @property
    def spec(self) -> CamSpec:
        """What is computed."""

    @property
    def preprocess(self) -> Preprocess:
        """How photos are resized before the call."""

    @property
    def classes(self) -> ClassTable | None:
        """Names and places of the classes, if known."""

    @property
    def num_classes(self) -> int:
        """How many classes there are; asked for when targets are named."""

    @property
    def layers(self) -> tuple[LayerInfo, ...]:
        """The target layers; asked for when their maps, or their grids, are stored."""

    @property
    def keeps_layers(self) -> bool:
        """Whether explanations hold the layers' maps; asked for when they are stored."""

    @property
    def device(self) -> torch.device:
        """Where images are expected."""

    def __call__(self, images: Tensor, /, targets: Any = None) -> Explanation:
        """Explain uint8 [B,H,W,3] on ``device``; normalisation is the explainer's work.

        Targets are given only when the run names them.
        """

    def layers_at(self, size: tuple[int, int]) -> tuple[LayerInfo, ...]:
        """The target layers for images (H, W); asked for where images differ in size."""

    def fingerprint(self) -> dict[str, Any]:
        """Everything that changes results, JSON-ready: weights, spec, preprocessing, versions."""


def has_places(explainer: BatchExplainer) -> bool:
    """Whether it is known where the classes of an explainer lie."""
    return explainer.classes is not None and explainer.classes.has_places
