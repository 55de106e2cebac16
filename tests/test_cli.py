"""The commands as a user types them."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from dataclasses import is_dataclass
from pathlib import Path

import numpy as np
import onnx
import pyarrow.parquet as pq
import pytest
from PIL import Image

from combicam import cli, read_shard
from combicam.demo.tour import DemoConfig, demo, write_postcards


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planet")
    write_postcards(folder, 12, seed=500)
    (folder / "photos" / "broken.jpg").write_bytes(b"no jpeg")
    return folder / "photos"


@pytest.mark.long
def test_export_then_run_the_artifact_equals_running_the_network(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = []
    cli.main(["export", "-m", "demo", "-o", str(tmp_path / "planet.onnx"), "--layers", "stages"])
    assert "heatmap error" in capsys.readouterr().out
    for model, extra in (
        ("demo", ["--layers", "stages"]),
        (str(tmp_path / "planet.onnx"), []),
    ):
        run = tmp_path / f"run{len(runs)}"
        cli.main(
            ["run", str(photos), "-o", str(run), "-m", model, "-b", "5", "--no-progress", *extra]
        )
        captured = capsys.readouterr()
        assert "1 (1 decode_error)" in captured.out
        assert "postcards" in captured.err  # what the demo model is good for
        runs.append(read_shard(run, 0))
    network, artifact = runs
    assert network.heatmaps.shape == (13, 1, 160, 160)
    assert np.abs(network.heatmaps.astype(int) - artifact.heatmaps).max() <= 1
    assert np.array_equal(network.targets, artifact.targets)


@pytest.mark.long
def test_rows_of_a_run(photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = [
        "run",
        str(photos),
        "-o",
        str(run),
        "-m",
        "demo",
        "--no-progress",
        "--overlays",
        "2",
    ]
    cli.main(arguments)
    rows = pq.read_table(run / "shards" / "00000.parquet").to_pylist()
    assert [r["status"] for r in rows].count("ok") == 12 and len(rows) == 13
    assert rows[0]["id"] == "broken.jpg" and rows[0]["heatmap"] is None and rows[0]["error"]
    assert rows[1]["class_name"] and -90 <= rows[1]["lat"] <= 90
    pictures = sorted((run / "overlays").iterdir())
    assert len(pictures) == 2 and Image.open(pictures[0]).size[0] > 320
    before = (run / "shards" / "00000.parquet").stat().st_mtime_ns
    cli.main(arguments)
    assert (run / "shards" / "00000.parquet").stat().st_mtime_ns == before
    with pytest.raises(SystemExit, match="method"):
        cli.main([*arguments, "--method", "hirescam"])
    assert json.loads((run / "summary.json").read_text())["images"] == 13


def test_files_for_a_runtime(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "demo.onnx"
    cli.main(["export", "-m", "demo", "-o", str(path), "--for", "tensorrt", "--layers", "last"])
    shown = capsys.readouterr().out
    assert "for tensorrt" in shown and "TensorRT 10.15; no TensorRT has run it" in shown
    assert f"trtexec --onnx={path.name}" in shown
    cli.main(["check", str(path)])
    shown = capsys.readouterr().out
    assert shown.count("nothing that is known") == 5
    model = onnx.load(str(path))
    model.graph.node[-1].op_type = "Det"
    onnx.save(model, str(path))
    with pytest.raises(SystemExit) as ended:
        cli.main(["check", str(path), "--for", "tensorrt"])
    assert ended.value.code == 1
    assert "Det: it has no such operator" in capsys.readouterr().out
    for arguments in (
        ["--for", "web", "--web", str(tmp_path / "site")],
        ["--for", "web", "-o", "m.ts"],
    ):
        with pytest.raises(SystemExit, match=r"expected (--output model|an )\.onnx"):
            cli.main(["export", "-m", "demo", "--for", "web", *arguments])


def test_layers_lists_shapes_and_rules(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["layers", "-m", "torchvision:resnet18"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 9
    assert lines[-1].split() == [
        "layer4.1",
        "BasicBlock",
        "512",
        "7",
        "7",
        "blocks",
        "stages",
        "last",
    ]
    cli.main(["layers", "-m", "demo", "--all"])
    assert len(capsys.readouterr().out.splitlines()) > 40


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "nowhere", "-o", "run", "-m", "demo"], "nowhere"),
        (["run", ".", "-o", "run", "-m", "resnet50"], "timm:NAME"),
        (["run", ".", "-o", "run", "-m", "missing.onnx"], "missing.onnx"),
        (["export", "-m", "demo", "-o", "model.pb"], "model.pb"),
        (["export", "-m", "no:model", "-o", "m.ts", "--target-input", "weight"], "'weights'"),
        (["run", ".", "-o", "run", "-m", "demo", "--layers", "stage7"], "near misses"),
        (["run", ".", "-o", "run", "-m", "demo", "--normalize", "none"], "normalize"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=words) as error:
        cli.main(arguments)
    assert str(error.value).startswith("combicam: error: ")


def test_layers_of_a_network_without_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "plain_network.py").write_text(
        "from torch import nn\n"
        "def build():\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    cli.main(["layers", "-m", "plain_network:build"])
    assert "Conv2d" in capsys.readouterr().out


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_options_and_says_what_it_does(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module(f"combicam.commands.{name.replace('-', '_')}")
    assert is_dataclass(module.Config) and callable(module.main)
    with pytest.raises(SystemExit) as ended:
        cli.main([name, "--help"])
    assert ended.value.code == 0
    assert f"usage: combicam {name}" in capsys.readouterr().out


def test_what_is_no_command_is_answered_with_the_commands(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for arguments in ([], ["stauts"], ["--help"]):
        with pytest.raises(SystemExit):
            cli.main(arguments)
        captured = capsys.readouterr()
        assert all(name in captured.out + captured.err for name in cli.COMMANDS)


def test_completions_of_a_shell_know_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--tyro-print-completion", "bash"])
    script = capsys.readouterr().out
    assert "--fiftyone" in script and "--retry-failed" in script


def test_as_a_module() -> None:
    command = [sys.executable, "-m", "combicam", "run", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert shown.startswith("usage: combicam run")


def test_model_is_required(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["run", "photos", "-o", "run"])
    assert "--model" in capsys.readouterr().err


@pytest.mark.long
def test_demo_points_at_the_evidence(tmp_path: Path) -> None:
    found = demo(DemoConfig(tmp_path, images=72, seed=3_000_000, overlays=3, progress=False))
    assert found.summary.images == 72 and not found.summary.failures
    assert found.accuracy > 0.9
    assert found.pointing > 0.75 > 2 * found.chance
    assert found.pointing > found.pointing_last
    assert Image.open(found.picture).size[0] > 900
    assert len(list((tmp_path / "photos").iterdir())) == 72
    fewer = demo(DemoConfig(tmp_path, images=5, seed=3_000_000, overlays=0, progress=False))
    assert fewer.summary.images == 5 and len(list((tmp_path / "photos").iterdir())) == 5
