"""The option ``--img-size``, of every command that has it."""

from __future__ import annotations

from typing import Any

import pytest
import tyro

from combicam import ModelConfig, cli
from combicam.export.models.image_size import as_size

COMMANDS = {
    "run": ["photos", "-o", "run"],
    "overlay": ["a.jpg", "-o", "overlays"],
    "evaluate": ["photos"],
    "recommend": ["photos", "-o", "recommended"],
    "export": ["-o", "model.onnx"],
    "layers": [],
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("words", "size"), [(["224"], (224, 224)), (["224", "288"], (224, 288)), ([], None)]
)
def test_one_number_is_a_square(command: str, words: list[str], size: Any) -> None:
    arguments = [*COMMANDS[command], "-m", "demo", *(["--img-size", *words] if words else [])]
    config = tyro.cli(
        cli._module(command).Config, args=arguments, config=(tyro.conf.OmitArgPrefixes,)
    )
    assert config.model.img_size == size == config.model.input_size


@pytest.mark.parametrize("words", [["1", "2", "3"], ["a"], ["0"], ["-3"], ["32", "x"], []])
def test_anything_else_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["layers", "-m", "demo", "--img-size", *words])
    told = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert "expected one number of pixels (224 means 224 x 224), or height and width" in told
    assert f"got {' '.join(words) or 'none'}" in told


def test_in_python_too() -> None:
    assert ModelConfig("demo", img_size=48).img_size == (48, 48)
    assert ModelConfig("demo", img_size=[48, 64]).img_size == (48, 64)  # type: ignore[arg-type]
    for size in ((1, 2, 3), (0, 4), 1.5, "48"):
        with pytest.raises(ValueError, match="img_size: expected one number of pixels"):
            as_size(size)  # type: ignore[arg-type]
