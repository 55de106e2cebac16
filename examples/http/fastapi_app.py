"""Serve a model with FastAPI: requests wait in a queue, and one thread explains them in batches.

combicam export -m demo -o demo.onnx
python fastapi_app.py demo.onnx --port 8000
curl --data-binary @photo.jpg -H 'Content-Type: image/jpeg' 'localhost:8000/explain?map=none'
"""

from __future__ import annotations

import argparse
import asyncio
import queue
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import Future
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from contract import Limits, PhotoApi, Row, explain_batch
from fastapi import FastAPI, Request, Response

import combicam

Waiting = tuple[np.ndarray, "Future[Row]"]


class Batcher:
    """A thread that takes what is waiting, up to ``limits.batch`` photos, and explains it at once.

    The queue is bounded by ``limits.waiting``, which :class:`contract.PhotoApi` keeps.
    """

    def __init__(self, explainer: combicam.Explainer, limits: Limits) -> None:
        self._explainer = explainer
        self._limits = limits
        self._queue: queue.Queue[Waiting | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work, name="batches")
        self._thread.start()

    async def explain(self, pixels: np.ndarray) -> Row:
        """The row of one photo."""
        future: Future[Row] = Future()
        self._queue.put((pixels, future))
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Explain what is waiting, and end the thread."""
        self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (first := self._queue.get()) is not None:
            batch = [first, *self._others()]
            # Clients that went away have cancelled theirs.
            batch = [(p, future) for p, future in batch if future.set_running_or_notify_cancel()]
            if not batch:
                continue
            try:
                rows = explain_batch(self._explainer, [pixels for pixels, _ in batch])
            except Exception as error:  # of this batch: its clients get it, the thread goes on
                for _, future in batch:
                    future.set_exception(error)
                continue
            for (_, future), row in zip(batch, rows, strict=True):
                future.set_result(row)

    def _others(self) -> list[Waiting]:
        """What comes before the batch is full or the time is over."""
        end = time.monotonic() + self._limits.batch_wait_s
        others: list[Waiting] = []
        while len(others) < self._limits.batch - 1:
            try:
                item = self._queue.get(timeout=max(0, end - time.monotonic()))
            except queue.Empty:
                break
            if item is None:
                self._queue.put(None)  # the end comes after this batch
                break
            others.append(item)
        return others


def create_app(model: str | Path, limits: Limits = Limits()) -> FastAPI:  # noqa: B008
    """The application.

    Args:
        model: an exported file.
        limits: of this process.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        explainer = combicam.Explainer.load(model)
        batcher = Batcher(explainer, limits)
        app.state.api = PhotoApi(explainer, limits, batcher.explain)
        app.state.model = explainer.description.model
        yield
        batcher.close()

    app = FastAPI(title="combicam", lifespan=lifespan)

    @app.post("/explain")
    async def explain(request: Request) -> Response:
        return await app.state.api(request)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"model": app.state.model}

    return app


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve an exported file.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--batch", type=int, default=Limits.batch, help="photos in one call")
    parser.add_argument("--waiting", type=int, default=Limits.waiting, help="photos that may wait")
    given = parser.parse_args()
    limits = Limits(batch=given.batch, waiting=given.waiting)
    uvicorn.run(create_app(given.model, limits), port=given.port, log_level="warning")


if __name__ == "__main__":
    main()
