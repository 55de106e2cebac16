"""The documentation: every command and every block of Python is run, every link leads somewhere.

A block that cannot be run has ``<!-- not run: REASON -->`` above it; its options are still checked.
The figures, commands, files and imports that README and CONTRIBUTING name are compared with records
and sources.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from test_architecture import LAYERS
from torch import nn

import combicam
from combicam import cli
from combicam.cli import COMMANDS

ROOT = Path(__file__).parents[1]
# Their blocks are run by tests of their own, with runs and files that were made for them.
ELSEWHERE = {"reading.md", "faithfulness.md", "embedding.md"}
FAST = ("explain-your-own-cnn.md", "methods-and-maths.md")
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
API = sorted((DOCS / "api").glob("*.md"))
README = ROOT / "README.md"
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
ALL_PAGES = [*PAGES, *API, README, CONTRIBUTING, ROOT / "CHANGELOG.md"]
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


@pytest.mark.long
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


@pytest.mark.parametrize("page", named(ALL_PAGES))
def test_links_lead_somewhere(page: Path) -> None:
    for target in _LINK.findall(page.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("page", named(ALL_PAGES))
def test_blocks_say_what_they_are(page: Path) -> None:
    for block in blocks(page):
        assert block.kind in ("python", "sh", "text", "json") or not block.kind, block
        assert block.reason is None or len(block.reason.split()) > 2, block
        if block.kind == "python":
            compile(block.code, str(page), "exec")


def test_the_index_knows_all_pages() -> None:
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    linked = {target for target in _LINK.findall(index) if target.endswith(".md")}
    assert linked == {str(page.relative_to(DOCS)) for page in [*PAGES, *API]} - {"index.md"}


def test_the_api_reference_has_every_public_name() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in API)
    paths = re.findall(r"^::: (\S+)$", text, re.MULTILINE)
    assert len(paths) == len(set(paths))
    named = {path.rpartition(".")[2] for path in paths}
    assert set(combicam.__all__) - named == {"__version__"}


def record(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "benchmarks/results" / name).read_text())
    return found


def test_figures_of_the_readme_are_those_of_the_records() -> None:
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    graph = {
        (case["params"]["case"], case["name"]): case["images_per_s"]
        for case in record("graph-cpu.json")["cases"]
    }
    times = {
        network: graph[network, "forward, ONNX Runtime"] / graph[network, "combicam, .onnx"]
        for network in ("resnet50", "efficientnet_b4")
    }
    passed = [not case["error"] for case in record("coverage.json")["cases"]]
    claim = record("claim-cpu.json")
    pointing = {name: found["pointing"]["mean"] * 100 for name, found in claim["maps"].items()}
    words = " ".join(text.split())
    for phrase in (
        f"take {times['resnet50']:.1f} times as long as scores alone (ResNet-50, 4 layers)",
        f"and {times['efficientnet_b4']:.1f} times (EfficientNet-B4, 32 layers)",
        f"[{sum(passed)} of {len(passed)} architectures]",
        f"on {claim['images']:,} drawn postcards",
        f"evidence in {pointing['Combi-CAM (all blocks)']:.0f} % and",
        f"Grad-CAM of the last block in {pointing['Grad-CAM, last block']:.0f} %;",
    ):
        assert phrase in words


def tree() -> list[tuple[str, int]]:
    """Path and depth of what CONTRIBUTING.md shows, from the top down."""
    shown = next(block.code for block in blocks(CONTRIBUTING) if block.kind == "text")
    paths, folder = [], ""
    for line in shown.splitlines():
        depth, name = len(line) - len(line.lstrip()), line.split()[0]
        folder = folder if depth else name
        paths.append((folder + name if depth else name, depth))
    return paths


def test_the_tree_has_every_folder() -> None:
    shown = [path for path, _ in tree()]
    assert all((ROOT / path).exists() for path in shown)
    for package in ("engine", "export"):
        there = {f"{path.parent.relative_to(ROOT)}/" for path in (ROOT / package).glob("*/*.py")}
        assert there == {p for p in shown if p.startswith(package) and p.count("/") == 2}


def test_the_tree_has_the_order_of_imports() -> None:
    for package in ("engine", "export"):
        shown = [Path(path).stem for path, depth in tree() if depth and path.startswith(package)]
        layers = [layer.partition(".")[2] for layer in LAYERS if layer.startswith(f"{package}.")]
        assert shown == [layer for layer in reversed(layers) if layer in shown]


def test_contributing_names_files_and_commands_that_are_there() -> None:
    text = CONTRIBUTING.read_text(encoding="utf-8")
    code = re.findall(r"`([^`\n]+)`", text)
    paths = [c for c in code if re.fullmatch(r"(\w+/)+(\w+\.\w+)?", c)]
    made = ("demo/", "site/")
    assert len(paths) > 20
    for path in paths:
        assert path.startswith(made) or (ROOT / path).exists(), path
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = re.search(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)
    assert phony and {f"make {target}" for target in phony[1].split()} <= set(code)
    ci = re.findall(r"^make \w+", (ROOT / ".ci/run").read_text(encoding="utf-8"), re.MULTILINE)
    said = re.search(r"`\.ci/run` calls ((?:.|\n)*?)\.\n", text)
    assert ci and said and re.findall(r"`([^`]+)`", said[1]) == ci


def test_the_changelog_has_this_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## \[(\d\S+)\]", text, re.MULTILINE)[0] == combicam.__version__


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
