"""The steps of pipelines in docs/embedding.md give the numbers of one photo at a time."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_docs import blocks

import combicam
from combicam import Explainer, export
from combicam.demo.model import load
from combicam.demo.planet import CELLS, postcard

PAGE = Path(__file__).parents[2] / "docs/embedding.md"
COUNT = 35  # more than a batch
Rows = list[tuple[int, float, np.ndarray]]
Run = Callable[[str], dict[str, Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the page's commands make: demo.onnx and demo/photos."""
    folder = tmp_path_factory.mktemp("embedding")
    export(Explainer(load(), layers="last"), folder / "demo.onnx", verify=0)
    (folder / "demo/photos").mkdir(parents=True)
    for cell in range(COUNT):
        kind = "jpg" if cell % 2 else "png"
        card = Image.fromarray(postcard(cell % len(CELLS), cell).image)
        card.save(folder / f"demo/photos/{cell:02}.{kind}")
    with suppress(combicam.MissingExtra):
        from combicam.demo.photographs import write_photographs

        write_photographs(folder / "demo/photos", folder / "photographs.csv")
    return folder


@pytest.fixture(scope="module")
def expected(folder: Path) -> Rows:
    explainer = Explainer.load(folder / "demo.onnx", device="cpu")
    found = [explainer(explainer.prepare(p)) for p in sorted((folder / "demo/photos").iterdir())]
    return [(int(f.targets[0]), float(f.scores[0]), f.heatmaps[0, 0].numpy()) for f in found]


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the blocks up to the first heading, then those of one section; their names."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    text = PAGE.read_text(encoding="utf-8").splitlines()

    def section_of(line: int) -> str:
        return next((row for row in reversed(text[:line]) if row.startswith("##")), "")

    def run(heading: str) -> dict[str, Any]:
        scope: dict[str, Any] = {"__name__": "page"}
        ran = 0
        for block in blocks(PAGE):
            section = section_of(block.line - 1).lstrip("# ")
            if block.kind == "python" and section in ("Steps of pipelines", heading):
                exec(compile("\n" * block.line + block.code, str(PAGE), "exec"), scope)
                ran += 1
        assert ran == 2
        return scope

    return run


def assert_same(found: Any, expected: Rows) -> None:
    rows = list(found)
    assert len(rows) == len(expected)
    for (number, score, heat), (other, chance, values) in zip(rows, expected, strict=True):
        assert number == other
        assert score == pytest.approx(chance, abs=1e-5)
        heatmap = np.asarray(heat, np.float32).reshape(values.shape)
        assert np.abs(heatmap - values).max() < 1e-4


def test_hugging_face(run: Run, expected: Rows) -> None:
    pytest.importorskip("datasets")
    rows = run("Hugging Face datasets")["with_maps"].with_format("numpy")
    assert_same(zip(rows["class"], rows["score"], rows["heatmap"], strict=True), expected)


def test_pandas(run: Run, expected: Rows) -> None:
    pytest.importorskip("pandas")
    table = run("pandas")["table"]
    assert list(table.columns) == ["path", "class", "score", "heatmap"]
    assert_same(table[["class", "score", "heatmap"]].itertuples(index=False), expected)


def test_polars(run: Run, expected: Rows) -> None:
    pytest.importorskip("polars")
    frame = run("Polars")["frame"]
    columns = (frame["class"], frame["score"], frame["heatmap"].to_numpy())
    assert_same(zip(*columns, strict=True), expected)


@pytest.mark.slow
def test_spark(run: Run, expected: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyspark")
    if shutil.which("java") is None and "JAVA_HOME" not in os.environ:
        pytest.skip("needs Java")
    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)
    scope = run("Spark")
    try:
        rows = sorted(scope["rows"].collect())
    finally:
        scope["spark"].stop()
    assert_same(((r["class"], r["score"], r["heatmap"]) for r in rows), expected)


def test_a_queue_of_files(run: Run, expected: Rows, folder: Path, tmp_path: Path) -> None:
    inbox, mine, done, failed = (tmp_path / n for n in ("inbox", "mine", "done", "failed"))
    shutil.copytree(folder / "demo/photos", inbox)
    for place in (mine, done, failed):
        place.mkdir()
    (inbox / "bad.jpg").write_bytes(b"no photo")
    work = run("A queue of files")["work"]
    gone = inbox / "00a.png"  # taken by another worker after this one has seen it
    listed = [*inbox.iterdir(), gone]

    class Inbox:
        def iterdir(self) -> list[Path]:
            return listed

    work(Inbox(), mine, done, failed)
    assert not list(inbox.iterdir()) and not list(mine.iterdir())
    assert {p.name for p in failed.iterdir()} == {"bad.jpg", "bad.jpg.txt"}
    assert "decode" in (failed / "bad.jpg.txt").read_text()
    kept = [np.load(path) for path in sorted(done.iterdir())]
    rows = [(int(k["class"]), float(k["score"]), k["heatmap"]) for k in kept]
    assert_same(rows, expected)
