"""Run directories that something damaged: readers answer, or say what is wrong with which file."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from fakes import FakeExplainer, configured, save_photos
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from combicam.engine.run.layout import RunLayout
from combicam.engine.run.log import read_log
from combicam.engine.run.open_run import open_run
from combicam.engine.run.status import run_status
from combicam.engine.runner import run_images
from combicam.errors import CombicamError
from combicam.export.classes.classes import ClassTable

FUZZ = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "80")),
    suppress_health_check=list(HealthCheck),
)
FILES = (
    *("run.json", "manifest.parquet", "classes.json", "progress.json", "log.jsonl", "summary.json"),
    *("shards/00000.parquet", "records/00001.json"),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    save_photos(folder / "in", 10)
    classes = ClassTable(("a", "b", "c", "d", "e"), (1, 2, 3, 4, 5), (1, 2, 3, 4, 5))
    run_images(configured(folder), FakeExplainer(classes=classes))
    return folder / "run"


def readers(run: Path) -> list[Callable[[], Any]]:
    return [
        lambda: run_status(run).to_dict(),
        lambda: read_log(RunLayout(run)),
        lambda: len(open_run(run)),
        lambda: open_run(run).table().num_rows,
        lambda: open_run(run).shard(0).heatmaps,
        lambda: open_run(run).shard(0).heatmap(0),
        lambda: open_run(run).find("p009.jpg"),
        lambda: open_run(run).classes,
        lambda: open_run(run).preprocess,
        lambda: run_images(configured(run.parent, str(run.parent / "in"), run), FakeExplainer()),
    ]


@FUZZ
@given(
    name=st.sampled_from(FILES),
    position=st.floats(0, 1),
    some=st.one_of(
        st.binary(max_size=12), st.sampled_from([b"null", b"[]", b"{", b'"', b"1e999", b"\n3\n"])
    ),
    kind=st.sampled_from(["cut", "set", "insert", "all"]),
)
def test_damaged_runs(run: Path, name: str, position: float, some: bytes, kind: str) -> None:
    with TemporaryDirectory() as folder:
        damaged = Path(folder, "run")
        shutil.copytree(run, damaged)
        data = bytearray((damaged / name).read_bytes())
        at = int(position * len(data))
        if kind == "cut":
            data = data[:at]
        elif kind == "all":
            data = bytearray(some)
        else:
            data[at : at + (len(some) if kind == "set" else 0)] = some
        (damaged / name).write_bytes(data)
        for read in readers(damaged):
            try:
                read()
            except (CombicamError, ValueError, KeyError) as error:
                assert str(error)
