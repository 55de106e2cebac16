"""The documentation: every command and every block of Python is run, every link leads somewhere.

A block that cannot be run has ``<!-- not run: REASON -->`` above it; its options are still checked.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from combicam import cli
from combicam.cli import COMMANDS

ROOT = Path(__file__).parents[1]
# Their blocks are run by tests of their own, with runs that were made for them.
ELSEWHERE = {"reading.md", "faithfulness.md"}
FAST = ("explain-your-own-cnn.md", "methods-and-maths.md")
PAGES = sorted((ROOT / "docs").glob("*.md"))
README = ROOT / "README.md"
_BLOCK = re.compile(
    r"(?P<skip><!-- not run: (?P<reason>.*?) -->\n)?^(?P<indent> *)```(?P<kind>\w*)\n"
    r"(?P<code>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)
_LINK = re.compile(r"\[[^]]*\]\(([^)#]+)(?:#[^)]*)?\)")


@dataclass(frozen=True)
class Block:
    """A fenced block: where it starts, its language, why it is not run."""

    line: int
    kind: str
    code: str
    reason: str | None


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            text.count("\n", 0, match.start("code")) + 1,
            match["kind"],
            re.sub(f"^{match['indent']}", "", match["code"], flags=re.MULTILINE),
            match["reason"] if match["skip"] else None,
        )
        for match in _BLOCK.finditer(text)
    ]


def named(pages: list[Path]) -> list[object]:
    return [pytest.param(page, id=page.name) for page in pages]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What getting-started.md makes with its first command."""
    folder = tmp_path_factory.mktemp("demo")
    cli.main(["demo", "--output", str(folder), "--images", "40", "--no-progress"])
    return folder


def run_page(page: Path, folder: Path, kinds: tuple[str, ...] = ("python", "sh")) -> None:
    """The blocks in order: Python in one namespace, commands in bash."""
    scope: dict[str, object] = {"__name__": "page"}
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for block in blocks(page):
        if block.reason is not None or block.kind not in kinds:
            continue
        if block.kind == "python":
            code = "\n" * block.line + block.code  # so that errors name the line of the page
            exec(compile(code, str(page), "exec"), scope)
        else:
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", block.code],
                cwd=folder,
                env={**os.environ, "PATH": tools, "PYTHONPATH": str(folder)},
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, f"{page}:{block.line}: {done.stdout}{done.stderr}"


@pytest.mark.parametrize("name", FAST)
def test_python_of_pages_without_a_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run_page(ROOT / "docs" / name, tmp_path, kinds=("python",))
    if name.startswith("explain"):
        assert (tmp_path / "figure.pdf").stat().st_size > 5000


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", named([p for p in PAGES if p.name not in ELSEWHERE]))
def test_pages(page: Path, demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if page.name != "getting-started.md":
        shutil.copytree(demo, tmp_path / "demo")
    monkeypatch.chdir(tmp_path)
    run_page(page, tmp_path)


@pytest.mark.slow
def test_readme(demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its Python, with a small network in the place of ResNet-50, and a run that is there."""
    torchvision = pytest.importorskip("torchvision")
    shutil.copytree(demo / "photos", tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torchvision.models, "resnet50", small_network)
    scope: dict[str, object] = {
        "__name__": "page",
        "images": torch.randint(0, 256, (2, 224, 224, 3), dtype=torch.uint8),
    }
    for block in blocks(README):
        if block.kind == "python" and block.reason is None:
            exec(compile("\n" * block.line + block.code, str(README), "exec"), scope)


def small_network(weights: str) -> nn.Module:
    assert weights == "DEFAULT"
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=4),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    )


@pytest.mark.parametrize("page", named([*PAGES, README]))
def test_links_lead_somewhere(page: Path) -> None:
    for target in _LINK.findall(page.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("page", named([*PAGES, README]))
def test_blocks_say_what_they_are(page: Path) -> None:
    for block in blocks(page):
        assert block.kind in ("python", "sh", "text", "json") or not block.kind, block
        assert block.reason is None or len(block.reason.split()) > 2, block
        if block.kind == "python":
            compile(block.code, str(page), "exec")


def test_the_index_knows_all_pages() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    linked = {target for target in _LINK.findall(index) if not target.startswith("http")}
    assert linked == {page.name for page in PAGES} - {"index.md"}


@pytest.fixture(scope="module")
def options() -> Callable[[str], str]:
    """The help of a command."""
    known: dict[str, str] = {}

    def help_of(command: str) -> str:
        if command not in known:
            tool = "import sys; from combicam.cli import main; main(sys.argv[1:])"
            known[command] = subprocess.run(
                [sys.executable, "-c", tool, command, "--help"],
                capture_output=True,
                text=True,
                check=True,
                env={**os.environ, "COLUMNS": "200"},
            ).stdout
        return known[command]

    return help_of


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_options_exist(options: Callable[[str], str]) -> None:
    """Also of commands that are not run."""
    for page in [*PAGES, README]:
        for block in blocks(page):
            code = block.code.replace("\\\n", " ") if block.kind == "sh" else ""
            for line in re.findall(r"^combicam (.+?)(?:#.*)?$", code, re.MULTILINE):
                words = line.split()
                assert words[0] in COMMANDS, f"{page.name}: {line}"
                for word in words[1:]:
                    if word.startswith("--"):
                        found = re.search(rf"(?<![\w-]){word}(?![\w-])", options(words[0]))
                        assert found, f"{page.name}: {word} in {line}"
