"""What a run tells of itself, while it goes on and afterwards."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import configured, start_run
from prometheus_client.parser import text_string_to_metric_families

from combicam.cli import main
from combicam.commands.status import Config
from combicam.engine.distribution.executor import DistributedExecutor, Ready, WorkerLost
from combicam.engine.run import progress as progress_module
from combicam.engine.run.layout import RunLayout
from combicam.engine.run.log import event, read_log, run_log
from combicam.engine.run.progress import Progress
from combicam.engine.run.prometheus import write_metrics
from combicam.engine.run.status import run_status, status_lines
from combicam.engine.run.work import ShardReport, ShardWork
from combicam.engine.runner import run_images
from combicam.errors import RunError


def events(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in RunLayout(run).log.read_text().splitlines()]


def test_a_finished_run(tmp_path: Path, photos: Any, fake: Any, capsys: Any) -> None:
    photos(tmp_path / "in", 20)[3].write_bytes(b"")
    run_images(configured(tmp_path), fake())
    status = run_status(tmp_path / "run")
    assert (status.state, status.images, status.shards) == ("finished", 20, 3)
    assert (status.committed_images, status.committed_shards) == (20, 3)
    assert status.failures == {"decode_error": 1} and status.remaining_s is None
    assert status.images_per_s is not None and status.images_per_s > 0
    named = [e["event"] for e in events(tmp_path / "run")]
    assert named == ["started", "committed", "committed", "committed", "finished"]
    first, second = events(tmp_path / "run")[:2]
    assert first["images"] == 20 and first["config"]["batch_size"] == 4
    assert second["statuses"] == {"decode_error": 1, "ok": 7} and second["level"] == "info"
    main(["status", str(tmp_path / "run"), "--json"])
    assert json.loads(capsys.readouterr().out)["committed_images"] == 20
    metrics = tmp_path / "run.prom"
    main(["status", str(tmp_path / "run"), "--watch", "0.1", "--metrics", str(metrics)])
    samples = {
        (s.name, s.labels.get("status")): s.value
        for family in text_string_to_metric_families(metrics.read_text())
        for s in family.samples
        if s.labels["run"] == str(tmp_path / "run")
    }
    assert samples["combicam_committed_images", None] == 20
    assert samples["combicam_failures", "decode_error"] == 1
    assert samples["combicam_running", None] == 0
    assert abs(samples["combicam_last_commit_timestamp_seconds", None] - time.time()) < 60
    with pytest.raises(ValueError, match=r"expected metrics as NAME\.prom"):
        write_metrics(status, tmp_path / "run.txt")
    assert "20 of 20 committed (100.0%)" in capsys.readouterr().out


def test_a_run_that_fails_says_why(tmp_path: Path, photos: Any, fake: Any) -> None:
    class Broken(fake):  # type: ignore[misc]
        def __call__(self, images: torch.Tensor, /) -> Any:
            raise ZeroDivisionError("kernel")

    class Short(fake):  # type: ignore[misc]
        def __call__(self, images: torch.Tensor, /) -> Any:
            if len(images) > 2:
                raise torch.OutOfMemoryError("too many")
            return super().__call__(images)

    photos(tmp_path / "in", 8)
    with pytest.raises(RunError):
        run_images(configured(tmp_path), Broken())
    assert run_status(tmp_path / "run").state == "failed"
    last = events(tmp_path / "run")[-1]
    assert last["event"] == "failed" and "ZeroDivisionError: kernel" in last["error"]
    run_images(configured(tmp_path), Short())
    halved = [e for e in events(tmp_path / "run") if e["event"] == "out_of_memory"]
    assert [(e["images"], e["limit"]) for e in halved] == [(4, 2)]
    status = run_status(tmp_path / "run")
    assert status.state == "finished"
    assert [(i.end, i.shards) for i in status.invocations] == [("failed", 0), ("finished", 1)]
    assert status.invocations[0].error == last["error"]
    assert dict(status_lines(status))["earlier invocations"] == "1 failed"


def test_warnings_are_shown_to_people(
    tmp_path: Path, photos: Any, fake: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    class Short(fake):  # type: ignore[misc]
        def __call__(self, images: torch.Tensor, /) -> Any:
            if len(images) > 2:
                raise torch.OutOfMemoryError("too many")
            return super().__call__(images)

    photos(tmp_path / "in", 4)
    run_images(configured(tmp_path, progress=True), Short())
    shown = capsys.readouterr().err
    assert "combicam: out of memory (images=4, limit=2)" in shown
    assert "committed" not in shown


@pytest.mark.long
def test_a_run_that_goes_on_and_one_that_died(
    tmp_path: Path, photos: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos(tmp_path / "in", 300)
    run = tmp_path / "run"
    process = start_run(tmp_path, committed=5, pause=0.2)
    status = run_status(run)
    assert status.state == "running" and 0 < status.committed_images < 300
    assert status.process is not None and str(process.pid) in status.process
    lines = dict(status_lines(status))
    assert lines["images"].endswith("%)") and "last heartbeat" in lines["process"]
    process.send_signal(signal.SIGKILL)
    process.wait()
    with RunLayout(run).log.open("a") as file:
        file.write('{"torn')  # what a death in the middle of a line leaves
    beat = json.loads(RunLayout(run).progress.read_text())
    RunLayout(run).progress.write_text(json.dumps(beat | {"updated": beat["updated"] - 100}))
    found = run_status(run)
    assert found.state == "dead" and found.remaining_s is None
    assert [i.end for i in found.invocations] == [None] and found.invocations[0].shards >= 4
    (run / "records/00000.json").unlink()
    assert run_status(run).committed_images == found.committed_images
    with run_log(RunLayout(run), show=False):  # the line that was cut off does not spoil the next
        event("started", host="here", pid=1)
    assert read_log(RunLayout(run))[-1]["pid"] == 1 and len(run_status(run).invocations) == 2


def test_owner_of_workers_logs_their_commits(tmp_path: Path) -> None:
    class OneWorker:
        slots = 1
        config = configured(tmp_path)

        def __init__(self) -> None:
            self.waiting: list[Any] = []

        def start(self, slot: int) -> None:
            self.waiting.append(WorkerLost("lost"))
            self.waiting.append(Ready())
            self.start = lambda slot: None  # type: ignore[method-assign]

        def hand(self, slot: int, work: ShardWork) -> None:
            self.waiting.append(ShardReport(8, 1, shard=work.index))

        def events(self, timeout_s: float) -> list[tuple[int, Any]]:
            return [(0, self.waiting.pop(0))]

        def stop(self) -> None:
            self.waiting.clear()

    (tmp_path / "run").mkdir()
    with run_log(RunLayout(tmp_path / "run"), show=False):
        list(DistributedExecutor(OneWorker()).process([ShardWork(0), ShardWork(1)]))
    died, *committed = events(tmp_path / "run")
    assert (died["event"], died["level"], died["reason"]) == ("worker_died", "warning", "lost")
    assert [(e["event"], e["shard"], e["failures"]) for e in committed] == [
        ("committed", 0, 1),
        ("committed", 1, 1),
    ]


def test_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"without a manifest\.parquet"):
        run_status(tmp_path)
    with pytest.raises(ValueError, match="--watch > 0 seconds, got 0"):
        Config(tmp_path, watch=0)


def test_a_heartbeat_that_a_power_failure_emptied(tmp_path: Path, photos: Any, fake: Any) -> None:
    photos(tmp_path / "in", 4)
    run_images(configured(tmp_path), fake())
    RunLayout(tmp_path / "run").progress.write_bytes(b"")
    status = run_status(tmp_path / "run")
    assert (status.state, status.committed_images) == ("not begun", 4)
    assert [i.end for i in status.invocations] == ["finished"]


def test_a_clock_that_is_set_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Progress(RunLayout(tmp_path), 10, 0, show=False, fields={}) as progress:
        now = time.time() - 3600
        monkeypatch.setattr(progress_module, "heartbeat_s", lambda run: 0.01)
        monkeypatch.setattr(progress_module.time, "time", lambda: now)
        time.sleep(0.02)
        progress.update(5, None)
        beat = json.loads(RunLayout(tmp_path).progress.read_text())
    assert beat["done"] == 5 and beat["updated"] == now
    assert 0 < beat["images_per_s"] <= 250 and 0 < beat["recent_images_per_s"] <= 250
    assert 0 < events(tmp_path)[-1]["seconds"] < 60
