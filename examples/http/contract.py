"""The HTTP contract that both servers keep: a photo in, classes, scores and heatmaps out.

``POST /explain?map=png`` with the photo as the body (``Content-Type: image/jpeg``, another
``image/…``, or ``application/octet-stream``) or as the field ``photo`` of a form. README.md has the
answer and the errors.
"""

from __future__ import annotations

import base64
import io
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

import combicam

MAPS = ("png", "array", "none")
FORM, BYTES = "multipart/form-data", "application/octet-stream"


@dataclass(frozen=True)
class Limits:
    """What a server takes.

    Attributes:
        photo_bytes, photo_pixels: of a photo.
        waiting: photos that are decoded, wait, or are explained; the next ones are sent away.
        batch: photos in one call.
        batch_wait_s: longest time that the first photo of a batch waits for others, seconds.
    """

    photo_bytes: int = 20_000_000
    photo_pixels: int = 100_000_000
    waiting: int = 64
    batch: int = 8
    batch_wait_s: float = 0.005


@dataclass(frozen=True)
class Row:
    """What is known of one photo: classes int64 [K], scores [K], heatmaps [K,H,W]."""

    classes: np.ndarray
    scores: np.ndarray
    heatmaps: np.ndarray


def explain_batch(explainer: combicam.Explainer, pixels: list[np.ndarray]) -> list[Row]:
    """Photos uint8 [H,W,C] in one call; a row for each."""
    found = explainer(np.stack(pixels))
    arrays = (found.targets, found.scores, found.heatmaps)
    return [Row(*values) for values in zip(*(a.cpu().numpy() for a in arrays), strict=True)]


class Refused(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, detail: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.response = JSONResponse({"detail": detail}, status, headers)


class PhotoApi:
    """Answers requests.

    Args:
        explainer: prepares photos, and knows the names of classes.
        limits: of this process.
        explain: pixels uint8 [H,W,C] -> the row of that photo; it makes the batches.
    """

    def __init__(
        self,
        explainer: combicam.Explainer,
        limits: Limits,
        explain: Callable[[np.ndarray], Awaitable[Row]],
    ) -> None:
        self._explainer = explainer
        self._limits = limits
        self._explain = explain
        self._waiting = 0

    async def __call__(self, request: Request) -> Response:
        """The answer to ``POST /explain``."""
        try:
            form = request.query_params.get("map", "png")
            if form not in MAPS:
                raise Refused(422, f"expected map as one of {', '.join(MAPS)}, got {form!r}")
            with self._place():
                photo = await self._photo(request)
                # Decoding releases the interpreter's lock, so it runs beside the network.
                row = await self._explain(await run_in_threadpool(self._pixels, photo))
            return JSONResponse(self._answer(row, form))
        except Refused as refused:
            return refused.response

    @contextmanager
    def _place(self) -> Iterator[None]:
        """A place among those that wait; requests run in one thread, so that a number counts."""
        if self._waiting >= self._limits.waiting:
            raise Refused(503, "too many photos are waiting; try again", {"Retry-After": "1"})
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1

    async def _photo(self, request: Request) -> bytes:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if not (kind.startswith("image/") or kind in (FORM, BYTES)):
            raise Refused(
                415, f"expected Content-Type image/…, {BYTES} or {FORM}, got {kind or 'none'!r}"
            )
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > self._limits.photo_bytes:
                raise Refused(413, f"expected at most {self._limits.photo_bytes} bytes")
        photo = bytes(body)
        if kind == FORM:
            photo = await _form_photo(request, photo)
        if not photo:
            raise Refused(400, "expected a photo, got an empty one")
        return photo

    def _pixels(self, photo: bytes) -> np.ndarray:
        try:
            return self._explainer.prepare(photo, max_pixels=self._limits.photo_pixels)[0]
        except combicam.DecodeError as error:
            raise Refused(422, f"expected a readable photo: {error}") from error

    def _answer(self, row: Row, form: str) -> dict[str, Any]:
        height, width = row.heatmaps.shape[1:]
        found = []
        for number, score, heat in zip(row.classes, row.scores, row.heatmaps, strict=True):
            names = self._explainer.classes
            entry: dict[str, Any] = {"class": int(number), "score": float(score)}
            entry["name"] = names.name(int(number)) if names else ""
            if form == "png":
                entry["map"] = _png(heat)
            elif form == "array":
                entry["map"] = heat.astype(float).round(4).tolist()
            found.append(entry)
        return {"explained": found, "map_size": [height, width]}


async def _form_photo(request: Request, body: bytes) -> bytes:
    async def whole() -> AsyncIterator[bytes]:
        yield body

    try:
        form = await MultiPartParser(request.headers, whole(), max_files=1).parse()
    except (MultiPartException, KeyError, ValueError) as error:
        # KeyError: no boundary; ValueError: the parser's own, which older Starlette lets through
        raise Refused(400, f"expected a form with a field 'photo', got {error}") from error
    field = form.get("photo")
    if not isinstance(field, UploadFile):
        raise Refused(400, f"expected a file in the field 'photo', got fields {sorted(form)}")
    return await field.read()


def _png(heat: np.ndarray) -> str:
    """A heatmap [H,W] in [0, 1] as grey PNG of 8 bits, base64."""
    file = io.BytesIO()
    Image.fromarray(np.rint(heat.clip(0, 1) * 255).astype(np.uint8)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
