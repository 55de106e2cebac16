"""Runs into and out of a real S3 server on this machine; everything goes over HTTP."""

from __future__ import annotations

import logging
import signal
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import fakes
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import spawned
from fakes import shard_bytes, start_run
from s3fs import S3FileSystem
from upath import UPath

from combicam.engine.inputs.listing import list_inputs
from combicam.engine.inputs.selection import Tally
from combicam.engine.run.config import RunConfig
from combicam.engine.run.layout import RunLayout
from combicam.engine.run.log import read_log
from combicam.engine.run.open_run import open_run, read_shard
from combicam.engine.run.status import run_status
from combicam.engine.runner import run, run_images
from combicam.engine.storage import locks
from combicam.engine.storage.atomic import temporary_path
from combicam.engine.storage.locks import StoreLock
from combicam.engine.storage.paths import is_remote, location
from combicam.errors import RunError


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """An S3 server in a thread; its address."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch, request: Any) -> Iterator[Any]:
    """A bucket of its own."""
    environment = {
        "AWS_ENDPOINT_URL": server,
        "AWS_ACCESS_KEY_ID": "any",
        "AWS_SECRET_ACCESS_KEY": "any",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    S3FileSystem.clear_instance_cache()  # of another server
    bucket: Any = location(f"s3://b{abs(hash(request.node.name))}")
    bucket.fs.mkdir(bucket.path)
    yield bucket
    bucket.fs.rm(bucket.path, recursive=True)


def uploaded(folder: Path, to: Any) -> Any:
    to.fs.put(str(folder), to.path, recursive=True)
    return to


def configured(source: Any, output: Any, **changes: Any) -> RunConfig:
    """``fakes.configured`` between places that are no folders beside each other."""
    return RunConfig(str(source), output, "fake", **{**fakes.SMALL, **changes})


def names(bucket: Any, folder: str) -> list[str]:
    base = f"{bucket.path.rstrip('/')}/{folder}"
    return [name.removeprefix(base).lstrip("/") for name in bucket.fs.find(base)]


def test_the_same_bytes_as_on_a_disk(tmp_path: Path, bucket: Any, photos: Any, fake: Any) -> None:
    photos(tmp_path / "in", 20)
    local = run_images(configured(tmp_path / "in", tmp_path / "run", overlays=1), fake())
    stored = run_images(configured(tmp_path / "in", str(bucket / "run"), overlays=1), fake())
    assert shard_bytes(bucket / "run") == shard_bytes(tmp_path / "run")
    assert (stored.images, stored.shards, stored.failures) == (20, 3, local.failures)
    pictures = [p.read_bytes() for p in (*local.overlays, *stored.overlays)]
    assert pictures[0] == pictures[1]
    there = names(bucket, "run")
    assert {name for name in there if name[0] != "."} == {
        *("run.json", "manifest.parquet", "progress.json", "log.jsonl", "summary.json"),
        *(f"shards/{i:05d}.parquet" for i in range(3)),
        *(f"records/{i:05d}.json" for i in range(3)),
        "overlays/000000_p000.png",
    }
    events = [event["event"] for event in read_log(RunLayout(bucket / "run"))]
    assert events == ["started", *["committed"] * 3, "finished"]
    status = run_status(str(bucket / "run"))
    assert (status.state, status.committed_images, status.shards) == ("finished", 20, 3)
    assert status.last_commit is not None and status.last_commit < 60
    assert not list(temporary_path(bucket / "x").parent.glob("*parquet"))


def test_a_key_longer_than_a_file_name(tmp_path: Path, bucket: Any, photos: Any, fake: Any) -> None:
    photos(tmp_path / "in", 2)
    run_images(configured(tmp_path / "in", str(bucket / "/".join(["deep"] * 80))), fake())
    assert open_run(str(bucket / "/".join(["deep"] * 80))).shard(0).ok.all()


def test_everything_from_the_store(tmp_path: Path, bucket: Any, photos: Any, fake: Any) -> None:
    files = photos(tmp_path / "in" / "a", 6)
    photos(tmp_path / "in" / "b", 3)
    (tmp_path / "in" / "notes.txt").write_text("x")
    with tarfile.open(tmp_path / "in.tar", "w") as tar:
        for file in files[:3]:
            tar.add(file, file.name)
    source = uploaded(tmp_path / "in", bucket / "in")
    (bucket / "tars" / "t-01.tar").write_bytes((tmp_path / "in.tar").read_bytes())
    run_images(configured(f"{source}/", f"{bucket / 'run'}/"), fake())
    opened = open_run(str(bucket / "run"))
    rows = opened.table(["id", "uri", "status"]).to_pylist()
    assert [row["id"] for row in rows] == [
        *(f"a/p{i:03d}.jpg" for i in range(6)),
        *(f"b/p{i:03d}.jpg" for i in range(3)),
    ]
    assert {row["status"] for row in rows} == {"ok"} and rows[0]["uri"] == f"{source}/a/p000.jpg"
    run_images(configured(tmp_path / "in", tmp_path / "local"), fake())
    local = read_shard(tmp_path / "local", 0)
    assert (opened.shard(0).heatmaps == local.heatmaps).all() and local.heatmaps.any()
    assert (read_shard(str(bucket / "run"), 0).scores == local.scores).all()
    assert opened.find("b/p001.jpg")[1] == 7

    entries = list(list_inputs(f"{source}/*/p00[01].jpg"))
    assert [e.id for e in entries] == ["a/p000.jpg", "a/p001.jpg", "b/p000.jpg", "b/p001.jpg"]
    members = list(list_inputs(str(bucket / "tars" / "t-{01..01}.tar")))
    assert [m.id for m in members] == [f"t-01.tar::p{i:03d}.jpg" for i in range(3)]
    assert members[2].read() == files[2].read_bytes()
    with pytest.raises(ValueError, match="no such"):
        list(list_inputs(str(bucket / "nothing")))


def test_lists_name_objects_and_files(tmp_path: Path, bucket: Any, photos: Any, fake: Any) -> None:
    files = photos(tmp_path / "in", 2)
    uploaded(tmp_path / "in", bucket / "in")
    (bucket / "in" / "empty.jpg").write_bytes(b"")
    rows = [str(bucket / "in/p000.jpg"), str(files[1]), str(bucket / "in/gone.jpg"), "in/empty.jpg"]
    (bucket / "list.txt").write_text("\n".join(rows))
    pq.write_table(pa.table({"uri": rows[:3]}), tmp_path / "list.parquet")
    run_images(configured(bucket / "list.txt", str(bucket / "run")), fake())
    table = open_run(str(bucket / "run")).table(["status", "error"]).to_pylist()
    assert [r["status"] for r in table] == ["ok", "ok", "missing", "decode_error"]
    assert table[2]["error"] == "read: no such object"
    run_images(configured(tmp_path / "list.parquet", tmp_path / "run"), fake())
    assert read_shard(tmp_path / "run", 0).ok.tolist() == [True, True, False]
    (bucket / "in" / "gone.jpg").write_bytes(files[0].read_bytes())
    config = configured(bucket / "list.txt", str(bucket / "run"), retry_failed=True)
    assert run_images(config, fake()).failures == {"decode_error": 1}


@pytest.mark.long
def test_killed_and_continued(tmp_path: Path, bucket: Any, photos: Any, fake: Any) -> None:
    photos(tmp_path / "in", 48)
    run_images(configured(tmp_path / "in", tmp_path / "whole"), fake())
    output = bucket / "run"
    process = start_run(tmp_path, output=output, committed=2)
    with pytest.raises(RunError, match=f"another run is writing to .*pid {process.pid}"):
        run_images(configured(tmp_path / "in", output), fake())
    process.send_signal(signal.SIGKILL)
    process.communicate()
    committed = shard_bytes(output)
    summary = run_images(configured(tmp_path / "in", output), fake())
    assert shard_bytes(output) == shard_bytes(tmp_path / "whole")
    assert 2 <= len(committed) < 6 and summary.new_images == 48 - 8 * len(committed)
    # The dead one's log reached the store as far as its last heartbeat.
    assert [e["event"] for e in read_log(RunLayout(output))][-1] == "finished"


def test_a_lease_is_one_runs(bucket: Any) -> None:
    folder = bucket / "run"
    won: list[StoreLock] = []
    refused: list[RunError] = []

    def take() -> None:
        try:
            won.append(StoreLock(folder, renew_s=0.05, lease_s=10))
        except RunError as error:
            refused.append(error)

    threads = [Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1 and len(refused) == 7
    won[0].check()
    won[0].release()
    assert [p.name for p in folder.glob(".lock-*")] == [".lock-000001"]
    second = StoreLock(folder, renew_s=0.05, lease_s=10)
    assert [p.name for p in folder.glob(".lock-*")] == [".lock-000002"]
    second.release()


def test_a_silent_holder_is_dead(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = bucket / "run"
    monkeypatch.setattr(locks, "_boot", lambda: None)  # both as if on other machines
    # It believes that nobody may take it for dead before an hour has gone.
    suspended = StoreLock(folder, renew_s=3600, lease_s=3600)
    start = time.monotonic()
    heir = StoreLock(folder, renew_s=0.1, lease_s=0.5)
    assert 0.5 <= time.monotonic() - start < 5
    heir.check()
    suspended._renew_s = 0.0
    suspended._ended.set()  # wakes up, and looks
    suspended._ended.clear()
    watcher = Thread(target=suspended._renew, daemon=True)
    watcher.start()
    watcher.join(10)
    with pytest.raises(RunError, match="another run is writing"):
        StoreLock(folder, renew_s=0.2, lease_s=10)
    with pytest.raises(RunError, match="another run that took over"):
        suspended.check()
    heir.check()
    heir.release()


def test_a_store_that_fails_loses_nothing(
    tmp_path: Path, bucket: Any, photos: Any, fake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos(tmp_path / "in", 24)
    run_images(configured(tmp_path / "in", tmp_path / "whole"), fake())
    output, real = bucket / "run", bucket.fs.put_file

    def put_file(source: str, target: str, **options: Any) -> None:
        if target.endswith("00001.parquet"):
            raise OSError(28, "no room")
        real(source, target, **options)

    monkeypatch.setattr(bucket.fs, "put_file", put_file)
    with pytest.raises(RunError, match=r"no room.*run again: committed shards are kept"):
        run_images(configured(tmp_path / "in", output), fake())
    assert sorted(shard_bytes(output)) == ["00000.parquet"]
    assert run_status(output).state == "failed"
    monkeypatch.setattr(bucket.fs, "put_file", real)
    run_images(configured(tmp_path / "in", output), fake())
    assert shard_bytes(output) == shard_bytes(tmp_path / "whole")


@pytest.mark.slow
def test_a_store_that_does_not_answer_ends_the_run(
    tmp_path: Path, bucket: Any, photos: Any, fake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos(tmp_path / "in", 8)
    uploaded(tmp_path / "in", bucket / "in")
    entries = list(list_inputs(str(bucket / "in")))
    S3FileSystem.clear_instance_cache()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(RunError, match=r"expected the store of s3://.* to answer"):
        entries[0].read()


@pytest.mark.slow
def test_two_workers_commit_at_once(tmp_path: Path, bucket: Any, photos: Any, fake: Any) -> None:
    photos(tmp_path / "in", 48)
    run_images(configured(tmp_path / "in", tmp_path / "whole"), fake())
    config = configured(tmp_path / "in", str(bucket / "run"), devices=["cpu", "cpu"])
    summary = run(config, spawned.Slow(), make=spawned.other_machine)
    assert shard_bytes(bucket / "run") == shard_bytes(tmp_path / "whole")
    assert summary.images == 48
    workers = {
        e["worker"] for e in read_log(RunLayout(bucket / "run")) if e["event"] == "committed"
    }
    assert workers == {0, 1}


def test_names_of_places() -> None:
    assert not is_remote(location("a/b")) and location("a/b") == Path("a/b")
    remote = location("s3://bucket/run")
    assert is_remote(remote) and str(remote / "x") == "s3://bucket/run/x"
    assert isinstance(remote, UPath)
    with pytest.raises(ValueError, match="expected a path, or one of s3://, gs://"):
        location("ftp://host/x")
    with pytest.raises(ValueError, match=r"leave out Path\(\)"):
        location(Path("s3://bucket/run"))


def test_photos_of_every_container_in_a_store(
    tmp_path: Path, bucket: Any, photos: Callable[..., list[Path]]
) -> None:
    first, second = photos(tmp_path / "in", 2)
    with tarfile.open(tmp_path / "t.tar.gz", "w:gz") as tar:
        tar.add(first, "a.jpg")
    rows = {"image": pa.array([second.read_bytes()], pa.binary())}
    pq.write_table(pa.table(rows), tmp_path / "t.parquet")
    for name, path in (("nameless", first), ("notes", Path(__file__))):
        (bucket / "looked" / name).write_bytes(path.read_bytes())
    for name in ("t.tar.gz", "t.parquet"):
        (bucket / "packed" / name).write_bytes((tmp_path / name).read_bytes())
    tally = Tally()
    (entry,) = list_inputs(str(bucket / "looked"), tally=tally)
    assert entry.id == "nameless" and entry.read() == first.read_bytes()
    assert tally.ignored == {"no suffix": 1}
    (entry,) = list_inputs(str(bucket / "packed" / "t.tar.gz"))
    assert entry.read() == first.read_bytes()
    (entry,) = list_inputs(str(bucket / "packed" / "t.parquet"))
    assert entry.read() == second.read_bytes()
