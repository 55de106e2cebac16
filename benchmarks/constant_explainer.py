"""Return one explanation for every image, to see what bounds a run other than its network."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from combicam.engine.explain.explanation import Explanation
from combicam.engine.explain.protocol import BatchExplainer
from combicam.export.classes.classes import ClassTable
from combicam.export.preprocess import Preprocess
from combicam.export.spec import CamSpec
from combicam.export.trace.probe import LayerInfo


class ConstantExplainer:
    """The explanation of the first image that it gets, of each size, for all images.

    Args:
        explainer: that explains the first.
    """

    def __init__(self, explainer: BatchExplainer) -> None:
        self._explainer = explainer
        self._first: dict[torch.Size, Explanation] = {}
        self.spec: CamSpec = explainer.spec
        self.preprocess: Preprocess = explainer.preprocess
        self.classes: ClassTable | None = explainer.classes
        self.num_classes: int = explainer.num_classes
        self.layers: tuple[LayerInfo, ...] = explainer.layers
        self.keeps_layers: bool = explainer.keeps_layers
        self.device: torch.device = explainer.device

    def __call__(self, images: Tensor, /, targets: Any = None) -> Explanation:
        """Views of the first explanation; targets are not looked at."""
        size = images.shape[1:]
        if size not in self._first:
            self._first[size] = self._explainer(images[:1])
        first = self._first[size]

        def repeated(tensor: Tensor) -> Tensor:
            return tensor.expand(len(images), *tensor.shape[1:])

        values = {field.name: getattr(first, field.name) for field in fields(first)}
        tensors = {n: repeated(value) for n, value in values.items() if isinstance(value, Tensor)}
        layer_maps = {name: repeated(maps) for name, maps in first.layer_maps.items()}
        return replace(first, **tensors, layer_maps=layer_maps)

    def layers_at(self, size: tuple[int, int]) -> tuple[LayerInfo, ...]:
        """See :class:`~combicam.engine.explain.protocol.BatchExplainer`."""
        return self._explainer.layers_at(size)

    def fingerprint(self) -> dict[str, Any]:
        """Another one than that of the explainer."""
        return self._explainer.fingerprint() | {"constant": True}
