"""Pack an image's maps into few bytes, which the page unpacks and colours."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import interpolate

from combicam.engine.shards.map_format import MapFormat

Map = NDArray[np.uint8]

# Longest side of packed heatmaps and of layer maps, enough for a screen.
_HEATMAP_SIDE = 160
_LAYER_SIDE = 64
# Budgets in bytes of an image's heatmaps and layer maps before compression; larger ones are scaled
# down: 200 images stay below 25 MB, however many targets and layers there are.
_BUDGET = 64 * 1024
_SMALLEST_SIDE = 16


def pack_maps(row: Mapping[str, Any], maps: MapFormat) -> dict[str, Any]:
    """Pack a row's maps for the page.

    Args:
        row: an explained row of a shard.
        maps: how the run stores maps.

    Returns:
        ``grids``: [[h,w], …] of the heatmap and then of each layer; ``data``: base64 of zlib of
        their bytes, [K,h,w] one after another, each row of a map as differences to its left
        neighbour; ``highs``: the value of 255 in each layer and target, where there are layers.
    """
    size = (row["heatmap_height"], row["heatmap_width"]) if maps.varies else None
    corners = bool(maps.align_corners)
    layers = _layer_maps(row, maps)
    heatmaps = maps.heatmap(row["heatmap"], size)
    parts = _fitting([heatmaps], _HEATMAP_SIDE, corners) + _fitting(layers, _LAYER_SIDE, corners)
    packed: dict[str, Any] = {
        "grids": [list(m.shape[1:]) for m in parts],
        "data": _compressed(parts),
    }
    if layers:
        packed["highs"] = [float(f"{high:.5g}") for high in row["layer_highs"]]
    return packed


def _layer_maps(row: Mapping[str, Any], maps: MapFormat) -> list[Map]:
    if not maps.layers or row.get("layer_maps") is None:
        return []
    flat = row.get("layer_sizes") or []
    sizes = tuple(zip(flat[::2], flat[1::2], strict=True))
    # With 255 as the largest value, maps are the stored bytes.
    highs = np.full(len(row["layer_highs"]), 255, np.float32)
    values = maps.layer_maps(row["layer_maps"], highs, sizes)
    return [np.rint(m).astype(np.uint8) for m in values.values()]


def _fitting(maps: list[Map], side: int, corners: bool) -> list[Map]:
    """Scale maps [K,h,w] down to the budget and ``side``."""
    small = [_shrunk(m, side, corners) for m in maps]
    while side > _SMALLEST_SIDE and sum(m.size for m in small) > _BUDGET:
        side //= 2
        small = [_shrunk(m, side, corners) for m in maps]
    return small


def _shrunk(maps: Map, side: int, corners: bool) -> Map:
    """Scale [K,h,w] down to a longer side of at most ``side``, by its grid's convention."""
    _, height, width = maps.shape
    scale = side / max(height, width)
    if scale >= 1:
        return maps
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    values = torch.from_numpy(maps.copy()).float()[None]
    # Aligned corners are sampled at nodes; otherwise pixels are averaged.
    small = (
        interpolate(values, size, mode="bilinear", align_corners=True)
        if corners
        else interpolate(values, size, mode="bilinear", antialias=True)
    )
    shrunk: Map = small[0].round().clamp(0, 255).to(torch.uint8).numpy()
    return shrunk


def _compressed(parts: list[Map]) -> str:
    differences = [np.diff(m, axis=-1, prepend=np.uint8(0)) for m in parts]
    data = b"".join(d.astype(np.uint8).tobytes() for d in differences)
    return base64.b64encode(zlib.compress(data, 6)).decode("ascii")
