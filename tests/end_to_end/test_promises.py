"""Runs that are killed, stopped, given up or tried again: nothing is lost or half there."""

from __future__ import annotations

import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from fakes import configured, shard_bytes, start_run
from slow_run import STEPS

from combicam.engine.runner import run_images
from combicam.errors import RunError


def column(run: Path, name: str) -> list[Any]:
    shards = sorted((run / "shards").glob("*.parquet"))
    return [v for path in shards for v in pq.read_table(path, columns=[name]).column(0).to_pylist()]


@pytest.mark.long
@pytest.mark.parametrize("step", [step for step in STEPS if step != "before the next record"])
def test_death_at_every_step_of_a_commit(step: str, tmp_path: Path, photos: Any, fake: Any) -> None:
    photos(tmp_path / "in", 28)
    run_images(configured(tmp_path, output="whole"), fake())
    dead = start_run(tmp_path, pause=0, step=step)
    assert dead.wait() == -signal.SIGKILL, dead.stderr
    whole = shard_bytes(tmp_path / "whole")
    left = shard_bytes(tmp_path / "run")
    assert len(left) < len(whole) and left.items() <= whole.items()
    summary = run_images(configured(tmp_path), fake())
    assert summary.images == 28 and shard_bytes(tmp_path / "run") == whole
    assert not list((tmp_path / "run").rglob(".*.tmp"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "images, kills", [(200, 2), pytest.param(10_000, 20, marks=pytest.mark.slow)]
)
def test_death_at_random_moments(
    images: int, kills: int, tmp_path: Path, photos: Any, fake: Any
) -> None:
    """Every life may commit some shards; the seed only says when it ends."""
    first = photos(tmp_path / "in", 40)
    for i in range(40, images):
        (tmp_path / "in" / f"q{i:05d}.jpg").hardlink_to(first[i % 40])
    size = {"batch_size": 16, "shard_size": images // 50}
    run_images(configured(tmp_path, output="whole", **size), fake())
    moments = random.Random(0)
    died = 0
    for _ in range(kills):
        process = start_run(tmp_path, pause=0.02, **size)
        before = len(shard_bytes(tmp_path / "run"))
        deadline = time.monotonic() + 60
        # Its start takes seconds, its work not: wait for the work, then for a moment of it.
        while len(shard_bytes(tmp_path / "run")) == before and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.2))
        process.kill()
        died += process.wait() == -signal.SIGKILL
        assert shard_bytes(tmp_path / "run").items() <= shard_bytes(tmp_path / "whole").items()
    assert died >= kills // 2
    assert run_images(configured(tmp_path, **size), fake()).images == images
    assert shard_bytes(tmp_path / "run") == shard_bytes(tmp_path / "whole")
    assert column(tmp_path / "run", "id") == column(tmp_path / "whole", "id")


def test_failed_images_are_tried_again(tmp_path: Path, photos: Any, fake: Any) -> None:
    paths = photos(tmp_path / "in", 20)
    run_images(configured(tmp_path, output="whole"), fake())
    mended = {paths[i]: paths[i].read_bytes() for i in (0, 3, 9, 10)}
    for path in mended:
        path.write_bytes(b"")
    broken = run_images(configured(tmp_path), fake())
    assert broken.failures == {"decode_error": 4}
    untouched = (tmp_path / "run/shards/00002.parquet").stat()
    for path in list(mended)[:3]:
        path.write_bytes(mended[path])
    explainer = fake()
    summary = run_images(configured(tmp_path, retry_failed=True), explainer)
    assert summary.failures == {"decode_error": 1} and summary.new_images == 4
    assert sum(explainer.batch_sizes) == 8  # a batch for each of two shards
    paths[10].write_bytes(mended[paths[10]])
    run_images(configured(tmp_path, retry_failed=True), fake())
    assert shard_bytes(tmp_path / "run") == shard_bytes(tmp_path / "whole")
    assert run_images(configured(tmp_path, retry_failed=True), fake()).new_images == 1
    assert (tmp_path / "run/shards/00002.parquet").stat().st_mtime_ns == untouched.st_mtime_ns


@pytest.mark.slow
def test_death_while_trying_again_keeps_the_old_rows(
    tmp_path: Path, photos: Any, fake: Any
) -> None:
    paths = photos(tmp_path / "in", 8)
    run_images(configured(tmp_path, output="whole"), fake())
    data = paths[5].read_bytes()
    paths[5].write_bytes(b"")
    run_images(configured(tmp_path), fake())
    before = shard_bytes(tmp_path / "run")
    paths[5].write_bytes(data)
    for step, changed in (
        ("before the rename of the first", False),
        # The first record is that of the old file, which the death before has left without.
        ("before the next record", True),
    ):
        dead = start_run(tmp_path, pause=0, step=step, retry_failed=True)
        assert dead.wait() == -signal.SIGKILL
        assert (shard_bytes(tmp_path / "run") != before) == changed
    summary = run_images(configured(tmp_path), fake())
    assert summary.failures == {} and shard_bytes(tmp_path / "run") == shard_bytes(
        tmp_path / "whole"
    )


@pytest.mark.parametrize("limit, ends", [("4", False), ("3", True), ("20%", False), ("19%", True)])
def test_too_many_failures_end_the_run(
    limit: str, ends: bool, tmp_path: Path, photos: Any, fake: Any
) -> None:
    paths = photos(tmp_path / "in", 20)
    for i in (2, 9, 17, 19):
        paths[i].write_bytes(b"")
    config = configured(tmp_path, max_failures=limit)
    if not ends:
        assert run_images(config, fake()).failures == {"decode_error": 4}
        return
    for _ in range(2):  # those of the first invocation count in the second
        with pytest.raises(
            RunError, match=r"at most 3 failed images .* got 4 \(the last: p019\.jpg, decode: "
        ):
            run_images(config, fake())
        assert not list((tmp_path / "run").rglob(".*.tmp"))
    assert len(shard_bytes(tmp_path / "run")) >= 2
    assert run_images(configured(tmp_path), fake()).images == 20


@pytest.mark.parametrize("limit", ["many", "-1", "101%", "5 %"])
def test_limits_that_are_none(limit: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="max_failures as a number or a share"):
        configured(tmp_path, max_failures=limit)


@pytest.mark.long
@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_signals_stop_the_command_with_their_exit_code(
    number: signal.Signals, tmp_path: Path, photos: Any
) -> None:
    first = photos(tmp_path / "in", 40, (160, 160))
    for i in range(40, 4000):
        (tmp_path / "in" / f"q{i:05d}.jpg").hardlink_to(first[i % 40])
    arguments = ["run", str(tmp_path / "in"), "-o", str(tmp_path / "run"), "-m", "demo"]
    arguments += ["--shard-size", "20", "--batch-size", "10"]
    call = f"from combicam.cli import main; main({arguments!r})"
    process = subprocess.Popen([sys.executable, "-c", call], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "shards" / "00000.parquet").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + number, stderr.decode()
    assert b"Traceback" not in stderr and b"run again" in stderr
    left = [p.name for p in (tmp_path / "run" / "shards").iterdir()]
    assert left and not [name for name in left if name.startswith(".")]
    assert not (tmp_path / "run" / "summary.json").exists()


@pytest.mark.parametrize("left", [0, -1])
def test_a_shard_that_a_disk_has_cut_off_is_done_again(
    left: int, tmp_path: Path, photos: Any, fake: Any
) -> None:
    photos(tmp_path / "in", 20)
    run_images(configured(tmp_path), fake())
    whole = shard_bytes(tmp_path / "run")
    (tmp_path / "run/shards/00001.parquet").write_bytes(whole["00001.parquet"][:left])
    assert run_images(configured(tmp_path), fake()).new_images == 8
    assert shard_bytes(tmp_path / "run") == whole


def test_inputs_that_changed_since_the_run_began_are_told(
    tmp_path: Path, photos: Any, fake: Any, caplog: pytest.LogCaptureFixture
) -> None:
    paths = photos(tmp_path / "in", 4)
    run_images(configured(tmp_path), fake())
    before = shard_bytes(tmp_path / "run")
    run_images(configured(tmp_path), fake())
    caplog.set_level(logging.WARNING, "combicam.run")
    caplog.clear()
    run_images(configured(tmp_path), fake())
    assert caplog.messages == []
    later = tmp_path / "in" / "later.jpg"
    later.write_bytes(paths[0].read_bytes())
    paths[0].unlink()
    assert run_images(configured(tmp_path), fake()).images == 4
    (message,) = caplog.messages
    assert "4 then, 4 now, the first that differs is later.jpg)" in message
    later.rename(paths[0])
    (tmp_path / "in" / "z.jpg").write_bytes(paths[0].read_bytes())
    run_images(configured(tmp_path), fake())
    assert "4 then, 5 now, the first that differs is z.jpg)" in caplog.messages[1]
    shutil.rmtree(tmp_path / "in")
    run_images(configured(tmp_path), fake())
    assert "no such" in caplog.messages[2]
    assert shard_bytes(tmp_path / "run") == before
