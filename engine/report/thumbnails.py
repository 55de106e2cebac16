"""Make thumbnails of images."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from combicam.engine.images.decode import MAX_PIXELS, DecodeConfig
from combicam.engine.inputs.entry import Entry
from combicam.engine.pipeline.load import load
from combicam.engine.run.open_run import OpenRun
from combicam.engine.shards.status import MISSING
from combicam.export.preprocess import Preprocess

_SIDE = 384
_QUALITY = 78
_FAST = DecodeConfig(fast_scale=True)


@dataclass(frozen=True)
class RunFacts:
    """The contents of a run's ``run.json``.

    Attributes:
        values: all of them.
        preprocess: None if it is not recorded.
        max_pixels: images with more pixels were refused.
    """

    values: dict[str, Any]
    preprocess: Preprocess | None
    max_pixels: int


def run_facts(run: OpenRun) -> RunFacts:
    """Read ``run.json``."""
    values = run.fingerprint
    return RunFacts(values, run.preprocess, int(values.get("max_pixels", MAX_PIXELS)))


def picture(entry: Entry, photo: tuple[int, int], max_pixels: int) -> dict[str, Any]:
    """An image as a WebP of at most 384 pixels.

    Args:
        entry: of the image.
        photo: (width, height) of the image when it was explained, pixels.
        max_pixels: see :class:`~combicam.engine.run.config.RunConfig`.

    Returns:
        ``photo``: data URI; or ``gone``: why there is none; or both, if the image has changed.
    """
    width, height = photo
    scale = min(1.0, _SIDE / max(photo))
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    loaded = load(entry, Preprocess(size, resize="squash"), replace(_FAST, max_pixels=max_pixels))
    if loaded.pixels is None:
        if loaded.record.status == MISSING:
            return {"gone": "the image is no longer where the run read it"}
        return {"gone": f"the image has changed since the run: {loaded.record.error}"}
    with io.BytesIO() as file:
        Image.fromarray(loaded.pixels).save(file, "WEBP", quality=_QUALITY, method=3)
        data = base64.b64encode(file.getvalue()).decode("ascii")
    result = {"photo": f"data:image/webp;base64,{data}"}
    if (loaded.record.width, loaded.record.height) != photo:
        result["gone"] = "the image was replaced since the run: its size differs"
    return result
