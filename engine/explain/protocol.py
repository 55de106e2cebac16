"""Define the interface of explainers that the runner needs."""

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
    """A callable from uint8 images to explanations; ``combicam.Explainer`` is one."""

    @property
    def spec(self) -> CamSpec:
        """What is computed."""

    @property
    def preprocess(self) -> Preprocess:
        """How images are resized before the call."""

    @property
    def classes(self) -> ClassTable | None:
        """Names and locations of the classes, if known."""

    @property
    def num_classes(self) -> int:
        """Number of classes; used if the run names targets."""

    @property
    def layers(self) -> tuple[LayerInfo, ...]:
        """The target layers; used if their maps or grids are stored."""

    @property
    def keeps_layers(self) -> bool:
        """Whether explanations have the layers' maps; used if they are stored."""

    @property
    def device(self) -> torch.device:
        """The device on which images are expected."""

    def __call__(self, images: Tensor, /, targets: Any = None) -> Explanation:
        """Explain uint8 [B,H,W,C] on ``device``; the explainer normalises them.

        Targets are passed only if the run names them.
        """

    def layers_at(self, size: tuple[int, int]) -> tuple[LayerInfo, ...]:
        """The target layers for images (H, W); used if images differ in size."""

    def fingerprint(self) -> dict[str, Any]:
        """Everything that changes results, JSON-ready: weights, spec, preprocessing, versions."""


def has_places(explainer: BatchExplainer) -> bool:
    """Whether the classes of an explainer have known locations."""
    return explainer.classes is not None and explainer.classes.has_places
