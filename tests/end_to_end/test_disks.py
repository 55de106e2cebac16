"""Outputs on disks that are full or read-only, and files that disks have damaged."""

from __future__ import annotations

import gc
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes import configured

from combicam import cli
from combicam.demo.tour import write_postcards
from combicam.engine.run.layout import RunLayout
from combicam.engine.run.open_run import open_run
from combicam.engine.runner import run_images
from combicam.errors import RunError


@pytest.fixture(scope="module")
def planet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos, a run over them, and an exported file."""
    folder = tmp_path_factory.mktemp("planet")
    write_postcards(folder, 4, seed=500)
    common = ["-m", "demo", "--layers", "last"]
    cli.main(["run", str(folder / "photos"), "-o", str(folder / "run"), "--no-progress", *common])
    return folder


def outputs(planet: Path, disk: Path) -> dict[str, list[str]]:
    """Commands that write to a disk."""
    run, photos = str(planet / "run"), [str(path) for path in (planet / "photos").iterdir()]
    model = ["-m", "demo", "--layers", "last"]
    return {
        "export onnx": ["export", "-o", f"{disk}/m.onnx", *model],
        "export ts": ["export", "-o", f"{disk}/m.ts", *model],
        "export triton": ["export", "--triton-repository", f"{disk}/triton", *model],
        "overlay": ["overlay", *photos, "-o", f"{disk}/overlays", "--figure", *model],
        "report": ["report", run, "-o", f"{disk}/report.html"],
        "convert tars": ["convert", run, f"{disk}/tars"],
        "convert geojson": ["convert", run, "--geojson", f"{disk}/places.json"],
        "convert geoparquet": ["convert", run, "--geoparquet", f"{disk}/places.parquet"],
        "evaluate": ["evaluate", run, "-o", f"{disk}/evaluation", "-m", "demo", "--images", "2"],
        "status": ["status", run, "--metrics", f"{disk}/run.prom"],
    }


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of a page; only root may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


NAMES = [
    *("export onnx", "export ts", "export triton", "overlay", "report", "convert tars"),
    *("convert geojson", "convert geoparquet", "evaluate", "status"),
]


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_disks_that_take_nothing_are_one_line(
    name: str, planet: Path, disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for state in ("full", "read-only"):
        if state == "full":
            with pytest.raises(OSError):
                (disk / "filler").write_bytes(bytes(1 << 20))
        else:
            subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        said = refusal(outputs(planet, disk)[name]) or capsys.readouterr().err.splitlines()[-1]
        gc.collect()  # a file that is still open would keep the disk writable
        reason = "No space left on device" if state == "full" else "Read-only file system"
        assert "error" in said and reason in said
        left = [path for path in disk.rglob("*") if path.is_file()]
        assert [path.name for path in left] == ["filler"]


def refusal(arguments: list[str]) -> str:
    """What a command that fails says; empty if it has printed it already."""
    try:
        cli.main(arguments)
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, str) else ""
    raise AssertionError("expected it to fail")


def test_damaged_files_of_a_run_say_what_to_do(tmp_path: Path, fake: Any, photos: Any) -> None:
    photos(tmp_path / "in", 3)
    config = configured(tmp_path)
    run_images(config, fake())
    run = RunLayout(tmp_path / "run")
    whole = run.fingerprint.read_bytes()
    for damaged in (b"", b"{", b"[]", b"\xff\xfe\x00", b"null"):
        run.fingerprint.write_bytes(damaged)
        with pytest.raises(RunError, match=r"run.json to be .*JSON.*; take it from a backup"):
            run_images(config, fake())
        with pytest.raises(RunError, match=r"run.json to be .*JSON"):
            _ = open_run(run.path).preprocess
    run.fingerprint.write_bytes(whole)
    run.summary.write_bytes(b"{")
    assert run_images(config, fake()).images == 3
    run.classes.write_text("{")
    with pytest.raises(RunError, match=r"classes.json to be intact JSON"):
        _ = open_run(run.path).classes
