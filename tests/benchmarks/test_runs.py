"""Whole commands: what their log says, and rows of those that fail."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks.runs import RunsConfig, figures, runs, runs_table


def _event(at: float, event: str, **more: Any) -> dict[str, Any]:
    return {"time": f"2026-11-27T02:29:{at:06.3f}Z", "event": event, **more}


def _shard(at: float, images: int) -> dict[str, Any]:
    statuses = {"ok": images - 1, "missing": 1}
    stages = {"read": 0.001 * images, "explain": 0.5}
    return _event(at, "committed", images=images, statuses=statuses, seconds=stages)


def test_figures_leave_out_the_first_fifth() -> None:
    shards = [_shard(3 + i, 100) for i in range(10)]
    found, rate = figures([_event(1, "started"), *shards, _event(14, "finished")])
    assert rate == pytest.approx(100) and found["first_shard_s"] == 2
    assert found["us_per_photo"] == {"read": 1000, "explain": 5000}
    assert found["images"] == 1000 and found["statuses"] == {"ok": 990, "missing": 10}
    _, rate = figures([_event(1, "started"), _shard(3, 100)])
    assert rate == 50


def test_a_command_that_fails_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (20, 10)).save(tmp_path / "one.jpg")
    log = "\n".join(str(e).replace("'", '"') for e in (_event(1, "started"), _shard(3, 5)))
    script = f"""if True:
        import os, pathlib, sys
        import pyarrow as pa, pyarrow.parquet as pq
        photos, output, decoder = map(pathlib.Path, sys.argv[1:])
        assert len(os.sched_getaffinity(0)) == 1 and len(list(photos.glob("*.jpg"))) == 5
        assert decoder.name == "auto", "no GPU"
        output.mkdir()
        (output / "log.jsonl").write_text({log!r})
        (output / "shards").mkdir()
        best = 4 if len(list(pathlib.Path({str(tmp_path)!r}).glob("*.again"))) else 3
        rows = {{"id": ["a", "b", "c"], "status": ["ok", "ok", "missing"]}}
        rows["targets"] = [[3, 1], [best, 2], [0, 0]]
        pq.write_table(pa.table(rows), output / "shards" / "0.parquet")
        pathlib.Path({str(tmp_path)!r}, "1.again").touch()
    """

    def command(_self: RunsConfig, decoder: str, _cores: int, photos: Path, out: Path) -> list[str]:
        return [sys.executable, "-c", script, str(photos), str(out), decoder]

    monkeypatch.setattr(RunsConfig, "command", command)
    config = RunsConfig(images=5, photos=tmp_path, decoders=("gpu", "auto"), cores=(1,), rounds=2)
    written: list[int] = []
    rows = runs(config, lambda line: None, lambda rows: written.append(len(rows)))
    assert written == [1, 2, 3, 4]
    failed, good, _, again = runs_table(rows).splitlines()[2:]
    assert "failed: " in failed and "no GPU" in failed
    assert good.startswith("| auto | 1 | 2 | 2.00 s |") and good.endswith("| 100.0% |")
    assert again.endswith("| 50.0% |")
    with pytest.raises(ValueError, match="expected a folder of"):
        runs(RunsConfig(photos=tmp_path / "none"), lambda line: None, lambda rows: None)


def test_what_is_typed() -> None:
    config = RunsConfig("torchvision:resnet50", device="cuda", amp_dtype="bfloat16")
    typed = " ".join(config.command("gpu", 4, Path("in"), Path("out")))
    assert "combicam run in -o out --model torchvision:resnet50 --random-weights" in typed
    assert "--amp-dtype bfloat16 --decoder gpu --workers 4" in typed
