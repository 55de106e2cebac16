"""Processes that read and decode: the same pixels, in order; a death costs one image at most."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from combicam import RunConfig
from combicam.engine.images.decode import DecodeConfig
from combicam.engine.inputs.entry import Entry
from combicam.engine.pipeline import load_processes, pipeline
from combicam.engine.pipeline.load import load
from combicam.engine.pipeline.load_processes import LoadProcesses, can_load_in_processes
from combicam.engine.shards.status import DECODE_ERROR, MISSING, OK
from combicam.errors import RunError
from combicam.export.preprocess import Preprocess

pytestmark = pytest.mark.skipif(not can_load_in_processes(), reason="no memory files")
SQUARE = Preprocess((16, 24))


@pytest.fixture(scope="module")
def pool() -> Iterator[LoadProcesses]:
    processes = LoadProcesses(2, 12, SQUARE, DecodeConfig())
    yield processes
    processes.close()


def entries(paths: list[Path]) -> list[Entry]:
    return [Entry(str(i), str(path)) for i, path in enumerate(paths)]


def ids(pool: LoadProcesses, inputs: list[Entry]) -> list[tuple[str, str]]:
    return [(item.record.entry.id, item.record.status) for item in pool.in_order(inputs)]


@pytest.mark.parametrize("count", [0, 1, 5, 12, 40])
def test_pixels_and_order_are_those_of_threads(
    pool: LoadProcesses, photos: Callable[..., list[Path]], tmp_path: Path, count: int
) -> None:
    paths = photos(tmp_path, count) if count else []
    if count > 4:
        paths[2].write_bytes(b"no image")
        paths[3].unlink()
    found = 0
    for one, item in zip(entries(paths), pool.in_order(entries(paths)), strict=True):
        expected = load(one, SQUARE)
        assert item.record == expected.record
        if expected.pixels is None:
            assert item.pixels is None
        else:
            assert item.pixels is not None and item.decode_s > 0
            np.testing.assert_array_equal(item.pixels, expected.pixels)
            found += 1
    assert found == (count - 2 if count > 4 else count)


def test_looks_no_further_ahead_than_its_window(
    pool: LoadProcesses, photos: Callable[..., list[Path]], tmp_path: Path
) -> None:
    taken: list[str] = []

    def inputs() -> Iterator[Entry]:
        for i, one in enumerate(entries(photos(tmp_path, 40))):
            assert i - len(taken) <= 14  # and the chunk that is being made
            yield one

    for item in pool.in_order(inputs()):
        taken.append(item.record.entry.id)
    assert len(taken) == 40


def test_images_of_many_sizes(tmp_path: Path) -> None:
    """Some are larger than their place in the shared memory."""
    paths = [tmp_path / f"{i}.png" for i in range(6)]
    for i, path in enumerate(paths):
        Image.fromarray(np.full((60, 60 + 60 * i, 3), 9 * i, np.uint8)).save(path)
    varied = Preprocess((32, 32), resize="short-side", side_step=8)
    pool = LoadProcesses(2, 4, varied, DecodeConfig())
    shapes = set()
    for one, item in zip(entries(paths), pool.in_order(entries(paths)), strict=True):
        expected = load(one, varied).pixels
        assert item.pixels is not None and expected is not None
        np.testing.assert_array_equal(item.pixels, expected)
        shapes.add(expected.shape)
    pool.close()
    assert max(h * w for h, w, _ in shapes) > 32 * 32 >= min(h * w for h, w, _ in shapes)


def test_an_image_that_kills_its_decoder_is_a_failed_row(
    photos: Callable[..., list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal\n"
        "from combicam.engine.inputs import entry\n"
        "plain = entry.Entry.read\n"
        "def read(self):\n"
        "    data = plain(self)\n"
        "    if data == b'deadly':\n"
        "        os.kill(os.getpid(), signal.SIGSEGV)\n"
        "    return data\n"
        "entry.Entry.read = read\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    paths = photos(tmp_path / "in", 20)
    for i in (0, 7, 8, 19):
        paths[i].write_bytes(b"deadly")
    pool = LoadProcesses(2, 24, SQUARE, DecodeConfig())
    found = list(pool.in_order(entries(paths)))
    again = ids(pool, entries(paths[1:7]))
    pool.close()
    assert [item.record.entry.id for item in found] == [str(i) for i in range(20)]
    failed = {i for i, item in enumerate(found) if item.record.status == DECODE_ERROR}
    assert failed == {0, 7, 8, 19}
    assert found[7].record.error == "decode: the process that decoded it died of SIGSEGV"
    assert {status for _, status in again} == {OK}


@pytest.mark.long
def test_processes_that_are_killed_cost_nothing(
    photos: Callable[..., list[Path]], tmp_path: Path
) -> None:
    pool = LoadProcesses(2, 12, SQUARE, DecodeConfig())
    inputs = entries(photos(tmp_path, 60))
    found = []
    for i, item in enumerate(pool.in_order(inputs)):
        found.append((item.record.entry.id, item.record.status))
        if i == 45:
            pool._parents[0]._process.kill()
        if i in (3, 30, 45):
            for worker in pool._workers:
                os.kill(worker.pid or 0, signal.SIGKILL)
    pool.close()
    assert found == [(str(i), OK) for i in range(60)]


@pytest.mark.parametrize("program", ["/bin/false", "/no/program"])
def test_processes_that_cannot_start_stop_the_run(
    photos: Callable[..., list[Path]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    program: str,
) -> None:
    inputs = entries(photos(tmp_path / "in", 3))
    monkeypatch.setattr("sys.executable", program)
    with pytest.raises(RunError, match="load_in='threads'"):
        list(LoadProcesses(2, 12, SQUARE, DecodeConfig()).in_order(inputs))


class Deadly(Preprocess):
    """Ends whoever is sent one, as short memory does, or a module that is not there."""

    def __reduce__(self) -> Any:
        return os._exit, (3,)


def test_processes_that_die_as_they_begin_stop_the_run(
    photos: Callable[..., list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that forked them lives."""
    monkeypatch.setattr(load_processes, "_END_S", 0.1)
    inputs = entries(photos(tmp_path / "in", 3))
    deadly = Deadly(SQUARE.input_size, resize=SQUARE.resize)
    with pytest.raises(RunError, match=r"got one that died before it could begin; see stderr"):
        list(LoadProcesses(2, 12, deadly, DecodeConfig()).in_order(inputs))


def test_an_error_of_the_store_is_the_runs(pool: LoadProcesses, tmp_path: Path) -> None:
    """And those who were asked for more start anew."""
    with pytest.raises(Exception, match="gs9"):
        list(pool.in_order([Entry(str(i), "gs9://bucket/x.jpg") for i in range(9)]))
    assert ids(pool, [Entry("a", str(tmp_path / "none.jpg"))]) == [("a", MISSING)]


def test_an_abandoned_order_is_forgotten(
    pool: LoadProcesses, photos: Callable[..., list[Path]], tmp_path: Path
) -> None:
    inputs = entries(photos(tmp_path, 30))
    loaded = pool.in_order(inputs)
    next(loaded)
    loaded.close()  # type: ignore[attr-defined]
    assert ids(pool, inputs[20:25]) == [(str(i), OK) for i in range(20, 25)]


def test_processes_end_with_their_owner(photos: Callable[..., list[Path]], tmp_path: Path) -> None:
    pool = LoadProcesses(2, 12, SQUARE, DecodeConfig())
    list(pool.in_order(entries(photos(tmp_path, 3))))
    pids = [worker.pid for worker in pool._workers]
    del pool
    for pid in pids:
        with pytest.raises(OSError) as found:
            os.kill(pid, 0)
        assert found.value.errno == errno.ESRCH


@pytest.mark.long
def test_processes_end_if_their_owner_is_killed(tmp_path: Path) -> None:
    script = (
        "from combicam.engine.pipeline.load_processes import LoadProcesses\n"
        "from combicam.engine.images.decode import DecodeConfig\n"
        "from combicam.engine.inputs.entry import Entry\n"
        "from combicam.export.preprocess import Preprocess\n"
        "pool = LoadProcesses(2, 12, Preprocess((8, 8)), DecodeConfig())\n"
        "list(pool.in_order([Entry(str(i), '/none.jpg') for i in range(9)]))\n"
        "print(*[w.pid for w in pool._workers], flush=True)\n"
        "input()\n"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    pids = [int(word) for word in owner.stdout.readline().split()]
    owner.kill()
    owner.wait()
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}/stat").exists() and _runs(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _runs(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def test_files_for_a_gpu(photos: Callable[..., list[Path]], tmp_path: Path) -> None:
    """They come as they are, also those that need more room than pixels; others are decoded."""
    paths = photos(tmp_path, 6)
    with Image.open(paths[2]) as image:
        image.resize((400, 300)).save(paths[2], quality=100)
        image.save(paths[3], "PNG")
    config = DecodeConfig("gpu")
    processes = LoadProcesses(2, 12, SQUARE, config)
    try:
        for one, item in zip(entries(paths), processes.in_order(entries(paths)), strict=True):
            expected = load(one, SQUARE, config, for_gpu=True)
            assert item.record == expected.record
            assert (item.encoded is None) is (expected.encoded is None) is (one.id == "3")
            if item.encoded is not None:
                assert bytes(item.encoded.data) == Path(one.uri).read_bytes()
                assert item.pixels is None and item.encoded.photo == expected.encoded.photo
    finally:
        processes.close()


@pytest.mark.parametrize("shared", [2**22, 20_000])
def test_large_files_for_a_gpu(
    shared: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through memory that is shared, where they fit; in as many bytes as they have either way."""
    monkeypatch.setattr(load_processes, "_FILE", shared)
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    paths = [tmp_path / f"{i}.jpg" for i in range(9)]
    for i, path in enumerate(paths):
        Image.fromarray(noise).save(path, quality=20 if i % 2 else 90)
    config = DecodeConfig("gpu")
    for item, path in zip(
        LoadProcesses(2, 12, SQUARE, config).in_order(entries(paths)), paths, strict=True
    ):
        assert item.encoded is not None
        assert bytes(item.encoded.data) == path.read_bytes()
        fits = path.stat().st_size <= shared
        assert isinstance(item.encoded.data, np.ndarray if fits else bytes)


def test_a_process_that_was_started_ahead_is_taken(
    photos: Callable[..., list[Path]], tmp_path: Path
) -> None:
    load_processes.start_ahead()
    load_processes.start_ahead()
    [ahead] = load_processes._started_ahead
    processes = LoadProcesses(1, 4, SQUARE, DecodeConfig())
    try:
        assert processes._parents == [ahead] and not load_processes._started_ahead
        assert ids(processes, entries(photos(tmp_path, 3))) == [(i, OK) for i in "012"]
    finally:
        processes.close()
    assert ahead.has_ended


def test_a_process_that_none_takes_ends() -> None:
    load_processes.start_ahead()
    [ahead] = load_processes._started_ahead
    load_processes.stop_ahead()
    assert ahead.has_ended and not load_processes._started_ahead


@pytest.mark.parametrize(
    ("options", "starts"),
    [
        ({"device": "cuda", "workers": 6}, True),
        ({"device": "cuda:1", "workers": 6}, True),
        ({"device": "cuda", "workers": 5}, False),
        ({"device": "cuda", "workers": 5, "load_in": "processes"}, True),
        ({"device": "cuda", "workers": 6, "load_in": "threads"}, False),
        ({"workers": 6}, True),
        ({"workers": 6, "devices": ("cuda:0", "cuda:1")}, False),
        ({"device": "cpu", "workers": 6}, False),
    ],
)
def test_when_to_start_ahead(
    options: dict[str, Any], starts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[bool] = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(pipeline, "start_ahead", lambda: started.append(True))
    pipeline.start_loading(RunConfig("in", Path("run"), "demo", **options))
    assert started == [True] * starts


def test_where_to_load() -> None:
    with pytest.raises(ValueError, match="load_in"):
        RunConfig("in", Path("run"), "demo", load_in="moon")  # type: ignore[arg-type]
