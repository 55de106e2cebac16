"""Serve a model with Ray Serve, whose batches are dynamic and whose replicas may be many.

python ray_serve_app.py demo.onnx --port 8000 --replicas 2
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

import numpy as np
from contract import Limits, PhotoApi, Row, explain_batch
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

import combicam

LIMITS = Limits()


# A replica sends photos away by itself, as the contract says; Ray Serve would answer without
# Retry-After, so it may pass on more than a replica takes.
@serve.deployment(max_ongoing_requests=4 * LIMITS.waiting)
class Explain:
    """One replica: an explainer, and the photos that wait for it."""

    def __init__(self, model: str) -> None:
        self._explainer = combicam.Explainer.load(model)
        self._api = PhotoApi(self._explainer, LIMITS, self._explain)

    @serve.batch(max_batch_size=LIMITS.batch, batch_wait_timeout_s=LIMITS.batch_wait_s)
    async def _explain(self, pixels: list[np.ndarray]) -> list[Row]:
        return await asyncio.to_thread(explain_batch, self._explainer, pixels)

    async def __call__(self, request: Request) -> Response:
        if (request.method, request.url.path) == ("POST", "/explain"):
            return await self._api(request)
        if request.url.path == "/health":
            return JSONResponse({"model": self._explainer.description.model})
        return JSONResponse({"detail": "expected POST /explain"}, 404)


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve an exported file.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--replicas", type=int, default=1)
    given = parser.parse_args()
    serve.start(http_options={"port": given.port})
    application = Explain.options(num_replicas=given.replicas).bind(str(given.model.resolve()))
    serve.run(application, blocking=True)


if __name__ == "__main__":
    main()
