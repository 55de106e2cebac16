"""Ask a server with many clients at once, check every answer, and print how long they took.

    python load.py http://127.0.0.1:8000 demo.onnx photos/ --clients 1 8 32 --requests 200

Every answer must be that of its own photo, as this process computes it from the same file.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

import combicam

SCORE, HEAT = 1e-4, 2  # largest differences; of heat in levels of 255


@dataclass(frozen=True)
class Expected:
    """A photo, and what must be answered."""

    photo: bytes
    classes: list[int]
    scores: np.ndarray
    heatmaps: np.ndarray

    def check(self, answer: dict) -> str:
        """What is wrong with an answer; empty if nothing is."""
        found = answer["explained"]
        if [entry["class"] for entry in found] != self.classes:
            return f"expected classes {self.classes}, got {[entry['class'] for entry in found]}"
        if np.abs(self.scores - [entry["score"] for entry in found]).max() > SCORE:
            return f"expected scores {self.scores}, got {[entry['score'] for entry in found]}"
        for heat, entry in zip(self.heatmaps, found, strict=True):
            image = Image.open(io.BytesIO(base64.b64decode(entry["map"])))
            if np.abs(np.asarray(image, float) - heat * 255).max() > HEAT:
                return "expected another heatmap"
        return ""


@dataclass
class Outcome:
    """Of one number of clients: seconds of each answer, what was wrong, and how often 503 came."""

    seconds: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    sent_away: int = 0

    def __str__(self) -> str:
        p50, p99 = np.percentile(self.seconds or [np.nan], [50, 99]) * 1000
        return (
            f"{len(self.seconds)} right answers, {len(self.wrong)} wrong, "
            f"{self.sent_away} times 503, p50 {p50:.0f} ms, p99 {p99:.0f} ms"
        )


def expected_answers(model: Path, photos: Sequence[Path]) -> list[Expected]:
    """One photo at a time, by the file itself."""
    explainer = combicam.Explainer.load(model)
    answers = []
    for photo in photos:
        found = explainer(explainer.prepare(photo))
        numbers = (found.scores[0].cpu().numpy(), found.heatmaps[0].cpu().numpy())
        answers.append(Expected(photo.read_bytes(), found.targets[0].tolist(), *numbers))
    return answers


async def ask(url: str, expected: Sequence[Expected], clients: int, requests: int) -> Outcome:
    """Send ``requests`` photos in turn from ``clients`` clients, each waiting for its answer."""
    outcome, work = Outcome(), iter(list(itertools.islice(itertools.cycle(expected), requests)))

    async def client(work: Iterator[Expected]) -> None:
        async with httpx.AsyncClient(base_url=url, timeout=120) as http:
            for one in work:
                start = time.perf_counter()
                while (response := await _post(http, one.photo)).status_code == 503:
                    outcome.sent_away += 1
                    await asyncio.sleep(float(response.headers["Retry-After"]))
                wrong = response.text if response.status_code != 200 else one.check(response.json())
                if wrong:
                    outcome.wrong.append(wrong)
                else:
                    outcome.seconds.append(time.perf_counter() - start)

    await asyncio.gather(*(client(work) for _ in range(clients)))
    return outcome


async def _post(http: httpx.AsyncClient, photo: bytes) -> httpx.Response:
    headers = {"Content-Type": "application/octet-stream"}
    return await http.post("/explain", content=photo, headers=headers)


def main() -> None:
    parser = argparse.ArgumentParser(description="Ask a server with many clients at once.")
    parser.add_argument("url")
    parser.add_argument("model", type=Path, help="the file that it serves")
    parser.add_argument("photos", type=Path, help="folder of photos")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--requests", type=int, default=200, help="for each number of clients")
    given = parser.parse_args()
    expected = expected_answers(given.model, sorted(given.photos.iterdir()))
    wrong = 0
    for clients in given.clients:
        outcome = asyncio.run(ask(given.url, expected, clients, given.requests))
        print(f"{clients} clients: {outcome}", flush=True)
        for text in outcome.wrong[:3]:
            print(f"  {text}")
        wrong += len(outcome.wrong)
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
