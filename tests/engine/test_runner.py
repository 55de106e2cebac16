"""The promises of a run, with an explainer that is instant."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from fakes import shard_bytes, start_run
from PIL import Image

from combicam.engine.images.decode import decode_image
from combicam.engine.run.open_run import read_shard
from combicam.engine.run.summary import RunSummary
from combicam.engine.runner import run_images
from combicam.errors import RunError

configured = partial(fakes.configured, workers=3, shard_size=10)


def rows(run: Path) -> list[dict[str, Any]]:
    shards = sorted((run / "shards").glob("*.parquet"))
    return [row for shard in shards for row in pq.read_table(shard).to_pylist()]


def test_every_input_is_one_row_in_order(tmp_path: Path, photos: Any, fake: Any) -> None:
    paths = photos(tmp_path / "in", 23)
    paths[5].write_bytes(b"")
    paths[6].write_bytes(b"<html>")
    paths[9].unlink()
    paths[9].mkdir()
    Image.new("RGB", (32, 24), (77, 77, 77)).save(paths[11].with_suffix(".png"))
    Image.new("RGB", (500, 500)).save(paths[12])
    config = configured(tmp_path, max_pixels=200_000)
    summary = run_images(config, fake())
    found = rows(config.output)
    assert [r["id"] for r in found] == sorted(p.name for p in (tmp_path / "in").iterdir())
    statuses = {r["id"]: r["status"] for r in found if r["status"] != "ok"}
    assert statuses == {
        "p005.jpg": "decode_error",
        "p006.jpg": "decode_error",
        "p009.jpg": "missing",
        "p011.png": "non_finite",
        "p012.jpg": "too_large",
    }
    by_id = {r["id"]: r for r in found}
    assert (by_id["p000.jpg"]["width"], by_id["p000.jpg"]["height"]) == (40, 30)
    assert (by_id["p012.jpg"]["width"], by_id["p012.jpg"]["height"]) == (500, 500)
    assert all((r["heatmap"] is None) == (r["status"] != "ok") for r in found)
    assert all((r["error"] is None) == (r["status"] == "ok") for r in found)
    assert summary.images == summary.new_images == 24 and summary.shards == 3
    assert summary.failures == {"decode_error": 2, "missing": 1, "non_finite": 1, "too_large": 1}
    record = json.loads((config.output / "records" / "00000.json").read_text())
    assert record["images"] == 10 and record["statuses"] == {
        "decode_error": 2,
        "missing": 1,
        "ok": 7,
    }
    assert set(record["seconds"]) == {"read", "decode", "batch", "explain", "encode", "commit"}


def test_rows_are_what_the_explainer_says(tmp_path: Path, photos: Any, fake: Any) -> None:
    paths = photos(tmp_path / "in", 6)
    explainer = fake(targets=2)
    config = configured(tmp_path, batch_size=3)
    run_images(config, explainer)
    data = read_shard(config.output, 0)
    for i, path in enumerate(paths):
        pixels = decode_image(path.read_bytes(), explainer.preprocess, config.decode).pixels
        alone = explainer(torch.from_numpy(pixels)[None])
        assert np.array_equal(
            data.heatmaps[i], alone.heatmaps[0].mul(255).round().to(torch.uint8).numpy()
        )
        assert np.array_equal(data.targets[i], alone.targets[0].numpy())
        assert np.array_equal(data.scores[i], alone.scores[0].numpy())
        assert np.array_equal(data.ranges[i], alone.ranges[0].numpy())


def test_bad_images_leave_their_neighbours_and_the_batch_shape(
    tmp_path: Path, photos: Any, fake: Any
) -> None:
    paths = photos(tmp_path / "in", 20)
    before, after = fake(), fake()
    run_images(configured(tmp_path, output=tmp_path / "a"), before)
    for i in (0, 7, 8, 19):
        paths[i].write_bytes(b"broken")
    run_images(configured(tmp_path, output=tmp_path / "b"), after)
    good = [i for i in range(20) if i not in (0, 7, 8, 19)]
    first, second = rows(tmp_path / "a"), rows(tmp_path / "b")
    assert [first[i] for i in good] == [second[i] for i in good]
    assert {second[i]["status"] for i in (0, 7, 8, 19)} == {"decode_error"}
    assert set(before.batch_sizes) == set(after.batch_sizes) == {4}


def test_batches_stay_full_across_failures(tmp_path: Path, photos: Any, fake: Any) -> None:
    for path in photos(tmp_path / "in", 16)[::2]:
        path.write_bytes(b"")
    explainer = fake()
    run_images(configured(tmp_path, shard_size=16), explainer)
    assert explainer.batch_sizes == [4, 4]


def test_result_does_not_depend_on_workers_or_batches(
    tmp_path: Path, photos: Any, fake: Any
) -> None:
    photos(tmp_path / "in", 21)[3].write_bytes(b"")
    one = configured(tmp_path, output=tmp_path / "a", workers=1, batch_size=1)
    many = configured(tmp_path, output=tmp_path / "b", workers=8, batch_size=7)
    run_images(one, fake())
    run_images(many, fake())
    assert shard_bytes(one.output) == shard_bytes(many.output)


def test_shard_with_nothing_good_in_it(tmp_path: Path, photos: Any, fake: Any) -> None:
    for path in photos(tmp_path / "in", 30)[10:20]:
        path.write_bytes(b"")
    explainer = fake()
    summary = run_images(configured(tmp_path), explainer)
    assert summary.failures == {"decode_error": 10} and summary.images == 30
    data = read_shard(tmp_path / "run", 1)
    assert not data.ok.any() and data.heatmaps.shape == (10, 1, 24, 32)
    assert len(explainer.batch_sizes) == 6


def test_running_again_does_only_what_is_missing(tmp_path: Path, photos: Any, fake: Any) -> None:
    paths = photos(tmp_path / "in", 30)
    config = configured(tmp_path)
    run_images(config, fake())
    whole = shard_bytes(config.output)
    (config.output / "shards" / "00001.parquet").unlink()
    (config.output / "records" / "00002.json").unlink()
    paths[0].unlink()  # the source is not listed or read again
    photos(tmp_path / "in" / "more", 3)
    explainer = fake()
    summary = run_images(config, explainer)
    assert shard_bytes(config.output) == whole
    assert sum(explainer.batch_sizes) == 12  # 10 images in even batches of 4
    assert (summary.images, summary.new_images, summary.failures) == (30, 10, {})
    assert json.loads((config.output / "records" / "00002.json").read_text())["images"] == 10


def test_nothing_to_do_keeps_the_summary(tmp_path: Path, photos: Any, fake: Any) -> None:
    photos(tmp_path / "in", 5)
    config = configured(tmp_path)
    first = run_images(config, fake())
    explainer = fake()
    assert run_images(config, explainer) == first
    assert explainer.batch_sizes == []
    assert RunSummary.read(config.output / "summary.json") == first


def test_summary_adds_up(tmp_path: Path, photos: Any, fake: Any) -> None:
    class Slow(fake):  # type: ignore[misc]
        def __call__(self, images: torch.Tensor, /) -> Any:
            time.sleep(0.05)
            return super().__call__(images)

    photos(tmp_path / "in", 16)
    summary = run_images(configured(tmp_path, shard_size=16), Slow())
    assert summary.bottleneck == "explain"
    assert 0.2 <= summary.stages["explain"].busy <= summary.wall_s
    assert summary.images_per_s == pytest.approx(16 / summary.wall_s, rel=0.01)
    # A thread is busy or it waits: together that is the wall time of one thread, or of three.
    explain, decode, read = (summary.stages[s] for s in ("explain", "decode", "read"))
    assert explain.busy + explain.waiting == pytest.approx(summary.wall_s, rel=0.05)
    total = read.busy + decode.busy + decode.waiting
    assert total == pytest.approx(3 * summary.wall_s, rel=0.05)


@pytest.mark.long
def test_killed_run_is_continued_to_the_same_bytes(tmp_path: Path, photos: Any, fake: Any) -> None:
    photos(tmp_path / "in", 48)
    changes: dict[str, Any] = {"batch_size": 4, "shard_size": 8}
    run_images(configured(tmp_path, output=tmp_path / "whole", **changes), fake())
    process = start_run(tmp_path, committed=2)
    try:
        with pytest.raises(RunError, match="another run is writing"):
            run_images(configured(tmp_path, **changes), fake())
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    committed = shard_bytes(tmp_path / "run")
    assert 2 <= len(committed) < 6
    summary = run_images(configured(tmp_path, **changes), fake())
    assert shard_bytes(tmp_path / "run") == shard_bytes(tmp_path / "whole")
    assert (summary.images, summary.new_images) == (48, 48 - 8 * len(committed))
    assert not list((tmp_path / "run" / "shards").glob(".*"))


@pytest.mark.long
def test_interrupt_stops_promptly_and_leaves_whole_shards(tmp_path: Path, photos: Any) -> None:
    photos(tmp_path / "in", 200)
    process = start_run(tmp_path, committed=2)
    process.send_signal(signal.SIGINT)
    start = time.monotonic()
    _, stderr = process.communicate(timeout=30)
    assert time.monotonic() - start < 10
    assert process.returncode not in (0, -signal.SIGKILL) and b"KeyboardInterrupt" in stderr
    names = [p.name for p in (tmp_path / "run" / "shards").iterdir()]
    assert names and not [name for name in names if name.startswith(".")]
    assert all(len(r["heatmap"]) == 24 * 32 for r in rows(tmp_path / "run"))
    assert not (tmp_path / "run" / "summary.json").exists()


@pytest.mark.parametrize(
    "change, named",
    [
        (lambda config, explainer: setattr(explainer, "weights", "other"), "explainer.weights"),
        (lambda config, explainer: {"heatmap_size": (8, 8)}, "heatmap_size"),
        (lambda config, explainer: {"shard_size": 5}, "shard_size"),
        (lambda config, explainer: {"max_pixels": 5}, "max_pixels"),
        (lambda config, explainer: {"input": "elsewhere"}, "input"),
    ],
)
def test_other_settings_are_refused_by_name(
    tmp_path: Path, photos: Any, fake: Any, change: Callable[[Any, Any], Any], named: str
) -> None:
    photos(tmp_path / "in", 12)
    config = configured(tmp_path)
    run_images(config, fake())
    before = shard_bytes(config.output)
    explainer = fake()
    changes = change(config, explainer) or {}
    with pytest.raises(RunError, match=f"got other .*{named}: .* there, .* now") as caught:
        run_images(configured(tmp_path, **changes), explainer)
    assert str(caught.value).count(" there, ") == 1
    assert shard_bytes(config.output) == before


def test_resources_may_change_between_invocations(tmp_path: Path, photos: Any, fake: Any) -> None:
    photos(tmp_path / "in", 12)
    run_images(configured(tmp_path), fake())
    assert run_images(configured(tmp_path, batch_size=9, workers=1), fake()).images == 12


@pytest.mark.parametrize("spec", [{"fuse": "none"}, {"normalize": "none"}, {"normalize": "layer"}])
def test_maps_that_bytes_cannot_hold_are_refused(
    tmp_path: Path, photos: Any, fake: Any, spec: dict[str, str]
) -> None:
    photos(tmp_path / "in", 1)
    with pytest.raises(ValueError, match=r"one map in \[0, 1\]"):
        run_images(configured(tmp_path), fake(**spec))
    assert not (tmp_path / "run").exists()


def test_memory_that_does_not_suffice_halves_batches(
    tmp_path: Path, photos: Any, fake: Any
) -> None:
    class Small(fake):  # type: ignore[misc]
        def __call__(self, images: torch.Tensor, /) -> Any:
            found = super().__call__(images)
            if len(images) > 4:
                raise torch.OutOfMemoryError("out of memory")
            return found

    photos(tmp_path / "in", 40)
    whole = configured(tmp_path, output=tmp_path / "whole", shard_size=20)
    run_images(whole, fake())
    explainer = Small()
    config = configured(tmp_path, batch_size=10, shard_size=20)
    summary = run_images(config, explainer)
    assert (summary.batch_limit, summary.halvings) == (2, 2)
    assert explainer.batch_sizes[:3] == [10, 5, 2] and set(explainer.batch_sizes[3:]) == {2}
    assert shard_bytes(config.output) == shard_bytes(whole.output)
    assert json.loads((config.output / "summary.json").read_text())["batch_limit"] == 2


def test_memory_too_small_for_one_image_fails(tmp_path: Path, photos: Any, fake: Any) -> None:
    class Full(fake):  # type: ignore[misc]
        def __call__(self, images: torch.Tensor, /) -> Any:
            raise torch.OutOfMemoryError("out of memory")

    photos(tmp_path / "in", 4)
    with pytest.raises(RunError, match="OutOfMemoryError"):
        run_images(configured(tmp_path), Full())


def test_failing_explainer_fails_the_run_and_keeps_shards(
    tmp_path: Path, photos: Any, fake: Any
) -> None:
    class Broken(fake):  # type: ignore[misc]
        def __call__(self, images: torch.Tensor, /) -> Any:
            if len(self.batch_sizes) == 4:
                raise ZeroDivisionError("kernel")
            return super().__call__(images)

    photos(tmp_path / "in", 30)
    config = configured(tmp_path)
    with pytest.raises(RunError, match=r"p014.jpg.*ZeroDivisionError: kernel") as caught:
        run_images(config, Broken())
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert set(shard_bytes(config.output)) <= {"00000.parquet"}
    assert not list((config.output / "shards").glob(".*"))
    assert run_images(config, fake()).images == 30


def test_full_disk_leaves_no_half_shard(
    tmp_path: Path, photos: Any, fake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, folder: Path) -> None:
        raise OSError(28, "No space left on device")

    photos(tmp_path / "in", 12)
    config = configured(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("combicam.engine.shards.writer.commit", full)
        with pytest.raises(RunError, match=r"No space left on device; free space .* run again"):
            run_images(config, fake())
    assert list((config.output / "shards").iterdir()) == []
    assert run_images(config, fake()).images == 12


def test_empty_input_can_be_corrected(tmp_path: Path, photos: Any, fake: Any) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(ValueError, match="at least one image"):
        run_images(configured(tmp_path), fake())
    photos(tmp_path / "other", 3)
    assert run_images(configured(tmp_path, input=str(tmp_path / "other")), fake()).images == 3


def test_tars_run(tmp_path: Path, photos: Any, fake: Any) -> None:
    import tarfile

    paths = photos(tmp_path / "plain", 7)
    (tmp_path / "in").mkdir()
    with tarfile.open(tmp_path / "in" / "s.tar", "w") as tar:
        for path in paths:
            tar.add(path, path.name)
    run_images(configured(tmp_path), fake())
    plain = configured(tmp_path, input=str(tmp_path / "plain"), output=tmp_path / "b")
    run_images(plain, fake())
    tarred, single = rows(tmp_path / "run"), rows(plain.output)
    assert [r["id"] for r in tarred] == [f"s.tar::{p.name}" for p in paths]
    assert [r["heatmap"] for r in tarred] == [r["heatmap"] for r in single]


def test_heatmap_size(tmp_path: Path, photos: Any, fake: Any) -> None:
    photos(tmp_path / "in", 3)
    run_images(configured(tmp_path, heatmap_size=(6, 8)), fake())
    assert read_shard(tmp_path / "run", 0).heatmaps.shape == (3, 1, 6, 8)


def test_warnings_of_pillow_stay_silent(
    tmp_path: Path, photos: Any, fake: Any, recwarn: pytest.WarningsRecorder
) -> None:
    photos(tmp_path / "in", 2)
    Image.new("1", (10_000, 9_000)).save(tmp_path / "in" / "large.png")
    assert run_images(configured(tmp_path), fake()).failures == {}
    assert not [w for w in recwarn if "bomb" in str(w.message)]


def test_progress_names_the_busiest_stage(
    tmp_path: Path, photos: Any, fake: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    photos(tmp_path / "in", 12)
    run_images(configured(tmp_path, progress=True), fake())
    assert "12/12" in (text := capsys.readouterr().err) and "busiest: " in text
