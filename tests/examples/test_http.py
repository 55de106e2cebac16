"""The servers of examples/http keep their contract, and no answer is lost or another photo's."""

from __future__ import annotations

import asyncio
import base64
import importlib
import io
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

import combicam
from combicam import Explainer, export
from combicam.demo.model import load
from combicam.demo.planet import CELLS, postcard

pytest.importorskip("fastapi")
httpx = pytest.importorskip("httpx")
pytest.importorskip("multipart")
FOLDER = Path(__file__).parents[2] / "examples/http"
NO_BOUNDARY = {"Content-Type": "multipart/form-data"}
JPEG = {"Content-Type": "image/jpeg"}


@pytest.fixture(scope="module")
def app() -> Iterator[Any]:
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module("fastapi_app")
    sys.path.remove(str(FOLDER))
    for file in FOLDER.glob("*.py"):
        sys.modules.pop(file.stem, None)


@pytest.fixture(scope="module")
def loads(app: ModuleType) -> Any:
    return importlib.import_module("load")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "planet.ts"
    export(Explainer(load(), layers="last", targets=2), path, verify=0)
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Postcards, and the photographs of scikit-image if it is there."""
    folder = tmp_path_factory.mktemp("photos")
    for cell in range(12):
        Image.fromarray(postcard(cell % len(CELLS), cell).image).save(folder / f"{cell:02}.png")
    with suppress(combicam.MissingExtra):
        from combicam.demo.photographs import write_photographs

        write_photographs(folder, folder.with_suffix(".csv"))
    return folder


@pytest.fixture(scope="module")
def client(app: ModuleType, model: Path) -> Iterator[Any]:
    from fastapi.testclient import TestClient

    limits = app.Limits(photo_bytes=200_000, photo_pixels=50_000)
    with TestClient(app.create_app(model, limits)) as client:
        yield client


def test_answers_are_those_of_the_file(client: Any, model: Path, photos: Path) -> None:
    explainer = Explainer.load(model)
    photo = (photos / "03.png").read_bytes()
    expected = explainer(explainer.prepare(photo))
    ways = (
        {"content": photo, "headers": {"Content-Type": "image/png; charset=binary"}},
        {"content": photo, "headers": {"Content-Type": "application/octet-stream"}},
        {"files": {"photo": ("a.png", photo, "image/png")}},
        {"files": {"photo": ("a.png", photo)}, "data": {"comment": "none"}},
    )
    for way in ways:
        answer = client.post("/explain", **way).json()
        assert answer["map_size"] == [160, 160]
        found = answer["explained"]
        assert [e["class"] for e in found] == expected.targets[0].tolist()
        assert np.allclose([e["score"] for e in found], expected.scores[0], atol=1e-6)
        assert [e["name"] for e in found] == [explainer.classes.name(e["class"]) for e in found]
        for entry, heat in zip(found, expected.heatmaps[0].numpy(), strict=True):
            image = Image.open(io.BytesIO(base64.b64decode(entry["map"])))
            assert image.size == (160, 160) and image.mode == "L"
            assert np.abs(np.asarray(image, float) - heat * 255).max() <= 0.51
    array = client.post("/explain?map=array", **ways[0]).json()["explained"][1]["map"]
    assert np.allclose(array, expected.heatmaps[0, 1], atol=1e-4)
    without = client.post("/explain?map=none", **ways[0]).json()["explained"]
    assert all("map" not in entry for entry in without)


def test_errors_say_what_was_expected(client: Any, photos: Path) -> None:
    photo = (photos / "00.png").read_bytes()
    large = io.BytesIO()
    Image.new("RGB", (300, 200)).save(large, "PNG")
    form = {"Content-Type": "multipart/form-data; boundary=b"}
    for status, words, way in (
        (400, "got an empty one", {"content": b"", "headers": JPEG}),
        (400, "field 'photo', got fields ['image']", {"files": {"image": photo}}),
        (400, "field 'photo'", {"data": {"photo": "text"}, "files": {"other": b"x"}}),
        (400, "got an empty one", {"files": {"photo": ("a.png", b"")}}),
        (400, "field 'photo'", {"content": b"no form", "headers": form}),
        (400, "field 'photo'", {"content": b"x", "headers": NO_BOUNDARY}),
        (413, "at most 200000 bytes", {"content": bytes(200_001), "headers": JPEG}),
        (413, "at most 200000 bytes", {"files": {"photo": bytes(200_001)}}),
        (415, "got 'text/plain'", {"content": photo, "headers": {"Content-Type": "text/plain"}}),
        (415, "got 'none'", {"content": photo}),
        (422, "a readable photo: ", {"content": b"no photo", "headers": JPEG}),
        (422, "a readable photo: ", {"content": photo[: len(photo) // 2], "headers": JPEG}),
        (422, "pixels", {"content": large.getvalue(), "headers": JPEG}),
        (422, "expected map", {"content": photo, "headers": JPEG, "params": {"map": "svg"}}),
    ):
        response = client.post("/explain", **way)
        assert response.status_code == status, (words, response.text)
        assert words in response.json()["detail"], response.text
    assert client.post("/explain", content=photo, headers=JPEG).status_code == 200  # it goes on
    assert client.get("/health").json() == {"model": load().name}


def test_a_full_server_sends_photos_away(
    app: ModuleType, model: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of seven photos at once, with room for three, four come back; a batch has all three."""
    sizes = []

    def slowly(explainer: Explainer, pixels: list[np.ndarray]) -> list[Any]:
        sizes.append(len(pixels))
        time.sleep(0.3)
        return explain(explainer, pixels)

    explain = app.explain_batch
    monkeypatch.setattr(app, "explain_batch", slowly)
    limits = app.Limits(waiting=3, batch=8, batch_wait_s=0.2)
    photo = (photos / "00.png").read_bytes()

    async def ask() -> list[Any]:
        served = app.create_app(model, limits)
        async with served.router.lifespan_context(served):
            transport = httpx.ASGITransport(app=served)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
                asked = (http.post("/explain", content=photo, headers=JPEG) for _ in range(7))
                return [*await asyncio.gather(*asked), await asked_again(http)]

    async def asked_again(http: Any) -> Any:
        return await http.post("/explain", content=photo, headers=JPEG)

    *responses, last = asyncio.run(ask())
    assert sorted(r.status_code for r in responses) == [200] * 3 + [503] * 4
    for response in responses:
        if response.status_code == 503:
            assert response.headers["Retry-After"] == "1" and "waiting" in response.json()["detail"]
    assert last.status_code == 200 and sizes == [3, 1]


def test_an_error_of_a_batch_does_not_end_the_thread(
    app: ModuleType, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    explainer = Explainer.load(model)
    batcher = app.Batcher(explainer, app.Limits())
    try:
        with pytest.raises(ValueError, match="expected images"):
            asyncio.run(batcher.explain(np.zeros((3, 3, 3), np.uint8)))
        row = asyncio.run(batcher.explain(np.zeros((160, 160, 3), np.uint8)))
        assert row.heatmaps.shape == (2, 160, 160)
    finally:
        batcher.close()


@contextmanager
def served(program: str, model: Path, *options: str) -> Iterator[str]:
    """The address of a server in a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, FOLDER / program, model, "--port", str(port), *options]
    process = subprocess.Popen(command)
    try:
        for _ in range(240):
            assert process.poll() is None, "the server ended"
            with suppress(httpx.HTTPError):
                if httpx.get(f"{url}/health").status_code == 200:
                    break
            time.sleep(0.5)
        yield url
    finally:
        process.terminate()
        process.wait(60)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("program", ["fastapi_app.py", "ray_serve_app.py"])
def test_many_clients(loads: ModuleType, model: Path, photos: Path, program: str) -> None:
    if program.startswith("ray"):
        pytest.importorskip("ray.serve", exc_type=ImportError)
    expected = loads.expected_answers(model, sorted(photos.iterdir()))
    with served(program, model) as url:
        for clients in (1, 8, 32):
            outcome = asyncio.run(loads.ask(url, expected, clients, 96))
            print(f"{program}, {clients} clients: {outcome}")
            assert not outcome.wrong, outcome.wrong[0]
            assert len(outcome.seconds) == 96
        if program.startswith("fastapi"):
            assert httpx.post(f"{url}/explain", content=b"x", headers=JPEG).status_code == 422


def test_the_load_test_sees_wrong_answers(loads: ModuleType, model: Path, photos: Path) -> None:
    first, second = loads.expected_answers(model, sorted(photos.iterdir())[:2])
    buffer = io.BytesIO()
    Image.fromarray(np.rint(first.heatmaps[0] * 255).astype(np.uint8)).save(buffer, "PNG")
    heat = base64.b64encode(buffer.getvalue()).decode()
    pairs = list(zip(first.classes, first.scores.tolist(), strict=True))
    answer = {"explained": [{"class": c, "score": s, "map": heat} for c, s in pairs]}
    assert first.check(answer) == "expected another heatmap"  # of the second class
    assert second.check(answer).startswith("expected classes")
    answer["explained"][0]["score"] += 0.01
    assert first.check(answer).startswith("expected scores")
