"""Explain the batches of a user's own Ray Dataset."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from combicam.engine.explain.config import ComputeConfig
from combicam.engine.explain.factory import make_explainer
from combicam.engine.explain.photo_batch import array_pixels
from combicam.engine.images.decode import DecodeConfig
from combicam.engine.images.gpu_jpeg import GpuDecoder
from combicam.engine.inputs.entry import Entry
from combicam.engine.pipeline.batch import Batch, batches
from combicam.engine.pipeline.channel import Channel
from combicam.engine.pipeline.explain_stage import ExplainStage
from combicam.engine.pipeline.gpu_decode import decoded_on_gpu
from combicam.engine.pipeline.load import Loaded, load
from combicam.engine.run.work import ShardWork
from combicam.engine.shards.map_format import map_format
from combicam.engine.shards.row_format import Record, ShardFormat
from combicam.export.models.models import ModelConfig
from combicam.export.spec import CamSpec


@dataclass(frozen=True, slots=True)
class _Held(Entry):
    """An input in memory."""

    data: bytes = b""

    def read(self) -> bytes:
        return self.data


class Explain:
    """Explains the batches of a Ray Dataset; Ray makes one in each actor.

    >>> ds = ray.data.read_binary_files("photos/", include_paths=True)
    >>> ds.map_batches(
    ...     Explain, fn_constructor_kwargs={"model": "model.onnx"}, batch_size=32, concurrency=2
    ... )

    A batch has a column ``bytes``, encoded images, or ``image``, uint8 [B,H,W,3], RGB, or [B,H,W,1]
    or [B,H,W], grey. It is replaced by the columns of a run's rows (``status``, ``error``,
    ``targets``, ``scores``, ``heatmap``, …); all other columns stay. An image that cannot be
    decoded is a row with its status. To use GPUs, pass ``num_gpus=1`` to ``map_batches``.

    Args:
        model: a name, an exported file, or a ModelConfig.
        cam: what to compute; an artifact has its own.
        compute: device, precision and backend.
        store: ``full``, ``grid`` or ``layers``, as for a run.
        heatmap_size: with ``full``, (H, W) that heatmaps are scaled to, pixels.
        decode: how ``bytes`` are decoded.
        max_pixels: images with more pixels are refused as ``too_large``.

    Raises:
        CombicamError, ValueError, FileNotFoundError: see
            :func:`~combicam.engine.explain.factory.make_explainer`.
    """

    def __init__(
        self,
        model: str | ModelConfig,
        cam: CamSpec | None = None,
        compute: ComputeConfig | None = None,
        *,
        store: str = "full",
        heatmap_size: tuple[int, int] | None = None,
        decode: DecodeConfig | None = None,
        max_pixels: int | None = None,
    ) -> None:
        config = model if isinstance(model, ModelConfig) else ModelConfig(model)
        self._explainer = make_explainer(config, cam, compute, keep_layers=store == "layers")
        self._explainer.preprocess.check_photos("Explain")
        maps = map_format(self._explainer, store, heatmap_size)
        self._format = ShardFormat(self._explainer.spec, maps, self._explainer.classes)
        self._stage = ExplainStage(
            self._explainer, maps, compute.cuda_graphs if compute is not None else False
        )
        self._decode = decode or DecodeConfig()
        if max_pixels is not None:
            self._decode = replace(self._decode, max_pixels=max_pixels)
        self._decoder: GpuDecoder | None = None
        if self._decode.decoder == "gpu":
            self._decoder = GpuDecoder(self._explainer.preprocess, self._explainer.device)

    def __call__(self, batch: Mapping[str, NDArray[Any]]) -> Any:
        """Explain a batch.

        Args:
            batch: of ``batch_format="numpy"``, Ray's default.

        Returns:
            A pyarrow table, one row per input, in order.

        Raises:
            ValueError: neither or both of ``bytes`` and ``image``, or images of the wrong type.
        """
        if len(given := {"bytes", "image"} & batch.keys()) != 1:
            raise ValueError(
                "Explain: expected a batch with a column 'bytes' or 'image', got columns "
                f"{sorted(batch)}; rename the column of images, and drop the other"
            )
        (name,) = given
        load_one = self._encoded if name == "bytes" else self._pixels
        explained = self._rows([load_one(value) for value in batch[name]])
        found = {c: explained.column(c) for c in explained.column_names if c not in ("id", "uri")}
        kept = {c: _arrow(values) for c, values in batch.items() if c != name and c not in found}
        return pa.table(kept | found)

    def _encoded(self, data: bytes) -> Loaded:
        entry = _Held("", "", data=data)
        return load(entry, self._explainer.preprocess, self._decode, self._decoder is not None)

    def _pixels(self, image: NDArray[Any]) -> Loaded:
        image = np.asarray(image)
        pixels = array_pixels(image, self._explainer.preprocess, "Explain")
        record = Record(_Held("", ""), width=image.shape[1], height=image.shape[0])
        return Loaded(record, pixels, 0.0)

    def _rows(self, loaded: list[Loaded]) -> Any:
        """The rows of all images, in order; images of the same size are explained together."""
        count, pin = len(loaded), self._explainer.device.type == "cuda"
        items, decoder = iter(loaded), self._decoder
        stack: Callable[[list[Tensor]], Tensor] = torch.stack
        if decoder is not None:
            items = decoded_on_gpu(items, decoder, self._explainer.preprocess, self._decode)
            stack = decoder.stack
        inbox: Channel[Batch] = Channel(count)
        for batch in batches(ShardWork(0), range(count), count, items, pin, stack):
            inbox.put(batch)
        inbox.close()
        explained = list(self._stage.explained(inbox))
        rows = [row for item in explained for row in item.batch.rows]
        tables = [self._format.table(item.batch.records, item.results) for item in explained]
        return pa.concat_tables(tables).take(np.argsort(rows))


def _arrow(values: NDArray[Any]) -> Any:
    values = np.asarray(values)
    return pa.array(values if values.ndim == 1 else values.tolist())
