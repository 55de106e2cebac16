"""Make small pictures of photos, with the part that the model saw."""

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
    """What ``run.json`` tells of a run.

    Attributes:
        values: all of it.
        preprocess: None where it does not say.
        max_pixels: photos with more were refused.
    """

    values: dict[str, Any]
    preprocess: Preprocess | None
    max_pixels: int


def run_facts(run: OpenRun) -> RunFacts:
    """Read ``run.json``."""
    values = run.fingerprint
    return RunFacts(values, run.preprocess, int(values.get("max_pixels", MAX_PIXELS)))


def picture(entry: Entry, photo: tuple[int, int], max_pixels: int) -> dict[str, Any]:
    """A photo as a WebP of at most 384 pixels.

    Args:
        entry: of the photo.
        photo: (width, height) that it had when it was explained, pixels.
        max_pixels: see :class:`~combicam.engine.run.config.RunConfig`.

    Returns:
        ``photo``: data URI; or ``gone``: why there is none; or both, of a photo that has changed.
    """
    width, height = photo
    scale = min(1.0, _SIDE / max(photo))
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    loaded = load(entry, Preprocess(size, resize="squash"), replace(_FAST, max_pixels=max_pixels))
    if loaded.pixels is None:
        if loaded.record.status == MISSING:
            return {"gone": "the photo is not where it was when the run read it"}
        return {"gone": f"the photo has changed since the run: {loaded.record.error}"}
    with io.BytesIO() as file:
        Image.fromarray(loaded.pixels).save(file, "WEBP", quality=_QUALITY, method=3)
        data = base64.b64encode(file.getvalue()).decode("ascii")
    found = {"photo": f"data:image/webp;base64,{data}"}
    if (loaded.record.width, loaded.record.height) != photo:
        found["gone"] = "another photo lies there now: its size is not that of the run's"
    return found
