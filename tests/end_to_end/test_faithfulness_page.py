"""docs/faithfulness.md: every command and every block of Python is run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from combicam import cli
from combicam.demo.planet import postcard

PAGE = Path(__file__).parents[2] / "docs" / "faithfulness.md"


@pytest.mark.slow
def test_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("photos", "masks"):
        Path(name).mkdir()
    for i in range(20):
        card = postcard(i, 8_000_000 + i)
        Image.fromarray(card.image).save(f"photos/p{i}.png")
        Image.fromarray(card.mask).save(f"masks/p{i}.png")
    cli.main(["run", "photos", "-o", "run", "-m", "demo", "--no-progress"])
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    scope: dict[str, object] = {}
    found = re.findall(r"^```(sh|python)\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
    assert [kind for kind, _ in found] == ["sh", "python", "python"]
    for kind, code in found:
        if kind == "python":
            exec(compile(code, str(PAGE), "exec"), scope)
        else:
            environment = os.environ | {"PATH": tools}
            subprocess.run(["bash", "-ec", code], check=True, env=environment, timeout=280)
    assert Path("run/evaluation.json").exists() and Path("compared/evaluation.json").exists()
    assert scope["insertion"]["map"]["images"] == 8  # type: ignore[index]
