"""Describe which maps of an image a run stores, and on which grids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from combicam.engine.explain.protocol import BatchExplainer
from combicam.export.trace.probe import LayerInfo

SCALE = 1 / 255

Size = tuple[int, int]


@dataclass(frozen=True)
class MapFormat:
    """The format of the bytes of a row's maps.

    Attributes:
        targets: K, maps per image.
        size: (h, w) of a stored heatmap; None where images, and so heatmaps, differ in size.
        input_size: (H, W) of the heatmap before it was stored; None as for ``size``.
        align_corners: None if the heatmap was scaled; otherwise it was sampled at the nodes of a
            layer's grid, and bilinear upsampling by this convention restores it.
        layers: with stored maps, in this order.
        layer_sizes: (h, w) of their grids; empty if images differ in size.
    """

    targets: int
    size: Size | None
    input_size: Size | None = None
    align_corners: bool | None = None
    layers: tuple[str, ...] = ()
    layer_sizes: tuple[Size, ...] = ()

    @property
    def varies(self) -> bool:
        """Whether the size of maps is stored in every row."""
        return self.size is None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        shape = [self.targets, *(self.size or (None, None))]
        return {"shape": shape, "dtype": "uint8", "scale": SCALE} | asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`to_dict`; shards of version 0.1 have only the shape."""
        shape = values["shape"]
        return cls(
            targets=shape[0],
            size=None if shape[1] is None else (shape[1], shape[2]),
            input_size=_size(values.get("input_size")),
            align_corners=values.get("align_corners"),
            layers=tuple(values.get("layers", ())),
            layer_sizes=tuple((h, w) for h, w in values.get("layer_sizes", ())),
        )

    def heatmap(self, data: Any, size: Size | None) -> NDArray[np.uint8]:
        """A row's bytes as uint8 [K,h,w]; ``size`` is the row's if sizes vary."""
        return np.frombuffer(data, np.uint8).reshape(self.targets, *(self.size or size or ()))

    def layer_maps(
        self, data: Any, highs: NDArray[np.float32], sizes: tuple[Size, ...]
    ) -> dict[str, NDArray[np.float32]]:
        """A row's bytes as layer -> float32 [K,h,w], in the explainer's scale.

        Args:
            data: of all layers, concatenated.
            highs: float32 [L*K], the largest value of each map.
            sizes: of the grids, if they vary.
        """
        values = np.frombuffer(data, np.uint8).astype(np.float32)
        maps, start = {}, 0
        for i, (name, (h, w)) in enumerate(
            zip(self.layers, self.layer_sizes or sizes, strict=True)
        ):
            end = start + self.targets * h * w
            top = highs[i * self.targets : (i + 1) * self.targets, None, None]
            maps[name] = values[start:end].reshape(self.targets, h, w) * (top * SCALE)
            start = end
        return maps


def map_format(explainer: BatchExplainer, store: str, heatmap_size: Size | None) -> MapFormat:
    """The format in which a run stores maps.

    Args:
        explainer: that makes the maps.
        store: ``full``, ``grid`` or ``layers``.
        heatmap_size: (h, w) of every heatmap, pixels; only with ``full``.

    Raises:
        ValueError: ``layers`` with an explainer that does not return layer maps.
    """
    one_size = explainer.preprocess.has_one_size
    input_size = explainer.preprocess.input_size if one_size else None
    targets = explainer.spec.targets
    if store == "full":
        return MapFormat(targets, heatmap_size or input_size, input_size)
    layers = explainer.layers if store == "layers" else ()
    if layers and not explainer.keeps_layers:
        raise ValueError(
            "run: expected an explainer that returns layer maps for store='layers', got one that "
            "does not; make it with keep_layers=True, or export the file again with --keep-layers"
        )
    return MapFormat(
        targets,
        finest(explainer.layers) if one_size else None,
        input_size,
        explainer.spec.align_corners,
        tuple(info.name for info in layers),
        tuple((info.height, info.width) for info in layers) if one_size else (),
    )


def finest(layers: tuple[LayerInfo, ...]) -> Size:
    """(h, w) of the largest grid."""
    info = max(layers, key=lambda info: info.height * info.width)
    return info.height, info.width


def _size(value: Any) -> Size | None:
    return None if value is None else (value[0], value[1])
