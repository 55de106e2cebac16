"""Imports run downwards, between folders and between the modules of a folder."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Modules and folders of combicam from bottom to top: each imports from those before it alone.
LAYERS = (
    "errors",
    "version",
    "allocator",
    "cores",
    "lazy",
    "requirements",
    "kernels",
    "export.tokens",
    "export.spec",
    "export.preprocess",
    "export.classes",
    "export.passes",
    "export.trace",
    "export.formats",
    "export.models",
    "export.__init__",
    "engine.storage",
    "engine.images",
    "engine.drawing",
    "engine.inputs",
    "engine.explain",
    "engine.geo",
    "engine.shards",
    "engine.run",
    "engine.pipeline",
    "engine.distribution",
    "engine.outputs",
    "engine.evaluation",
    "engine.report",
    "engine.serving",
    "engine.runner",
    "engine.ray",
    "engine.fiftyone",
    "engine.__init__",
    "demo",
    "doctor",
    "console",
    "commands",
    "cli",
    "__main__",
    "__init__",
)
EXCEPTIONS = {
    # A public constructor reads a file of classes, by the module that makes class tables of files.
    ("export.classes.classes", "export.classes.cell_files"),
}
Imports = Mapping[str, set[str]]  # a module -> the modules that it imports


def read_imports(root: Path) -> Imports:
    """All imports of combicam's modules by each other: of functions and for types, too."""
    files = {}
    for package in ("combicam", "kernels", "export", "engine"):
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root / "combicam" if package == "combicam" else root)
            files[".".join(parts.with_suffix("").parts)] = path
    return {name: set(_imported(name, path, files.keys())) for name, path in files.items()}


def _imported(name: str, path: Path, modules: object) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = ["combicam", *name.split(".")][: -node.level]
                base = ".".join([*above, base]).removesuffix(".")
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for target in names:
            found = _module(target, modules)
            if found is not None and found != name:
                yield found


def _module(target: str, modules: object) -> str | None:
    """The module that holds what is imported; None for those of others."""
    package, *parts = target.split(".")
    if package != "combicam":
        return None
    for end in range(len(parts), -1, -1):
        for name in (".".join(parts[:end]), ".".join([*parts[:end], "__init__"])):
            if name in modules:  # type: ignore[operator]
                return name
    raise AssertionError(f"{target}: no module of combicam")


def layer_of(module: str) -> int:
    """The number of the layer whose folder holds a module.

    Raises:
        AssertionError: none does.
    """
    fitting = [layer for layer in LAYERS if f"{module}.".startswith(f"{layer}.")]
    assert fitting, f"{module}: expected a layer that holds it; write it into LAYERS"
    return LAYERS.index(max(fitting, key=len))


def faults(imports: Imports) -> list[str]:
    """Every import that runs upwards, and every circle of modules."""
    upwards = [
        f"{source} -> {target} runs upwards"
        for source, targets in imports.items()
        for target in sorted(targets)
        if layer_of(target) > layer_of(source)
    ]
    reached = {module: _reached(module, imports) for module in imports}
    circles = {
        tuple(sorted(other for other in reached[module] if module in reached[other]))
        for module in imports
        if module in reached[module]
    }
    return upwards + [f"circle of {', '.join(circle)}" for circle in sorted(circles)]


def _reached(module: str, imports: Imports) -> set[str]:
    """What a module imports, directly or through others."""
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        new = imports[waiting.pop()] - seen
        seen |= new
        waiting += new
    return seen


def test_imports_run_downwards() -> None:
    imports = read_imports(ROOT)
    assert len(imports) > 150 and "kernels.cam_head" in imports["export.trace.trace"]
    for source, target in EXCEPTIONS:
        imports[source].remove(target)  # KeyError: it is none any more
    assert faults(imports) == []


GOOD = {
    "combicam/__init__.py": "from combicam.engine.runner import run",
    "combicam/errors.py": "class E(Exception): ...",
    "kernels/head.py": "from combicam.errors import E",
    "export/spec.py": "import torch\nfrom combicam.kernels import head",
    "engine/run/__init__.py": "",
    "engine/run/config.py": "from combicam.export.spec import S",
    "engine/run/status.py": "from combicam.engine.run.config import C",
    "engine/runner.py": "from combicam.engine.run import config, status",
}


def tree(root: Path, changes: Mapping[str, str]) -> Path:
    for name, text in {**GOOD, **changes}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_a_tree_without_faults(tmp_path: Path) -> None:
    imports = read_imports(tree(tmp_path, {}))
    assert imports["engine.runner"] == {"engine.run.config", "engine.run.status"}
    assert imports["export.spec"] == {"kernels.head"}
    assert faults(imports) == []


@pytest.mark.parametrize(
    ("module", "text", "expected"),
    [
        ("kernels/head.py", "from combicam.export.spec import S", "kernels.head -> export.spec"),
        ("export/spec.py", "import combicam.engine.runner as r", "export.spec -> engine.runner"),
        ("export/spec.py", "from combicam.engine import run", "export.spec -> engine.run.__init__"),
        ("export/spec.py", "from combicam import run", "export.spec -> __init__"),
        ("export/spec.py", "from ..engine.runner import run", "export.spec -> engine.runner"),
        (
            "engine/run/config.py",
            "def f():\n    from combicam.engine import runner",
            "engine.run.config -> engine.runner",
        ),
        (
            "engine/run/config.py",
            "from typing import TYPE_CHECKING\n"
            "if TYPE_CHECKING:\n    from combicam.engine.runner import run",
            "engine.run.config -> engine.runner",
        ),
    ],
)
def test_arrows_that_run_upwards(module: str, text: str, expected: str, tmp_path: Path) -> None:
    assert f"{expected} runs upwards" in faults(read_imports(tree(tmp_path, {module: text})))


def test_circles_in_a_folder(tmp_path: Path) -> None:
    """Also where one import of it is inside of a function, and relative."""
    changes = {
        "engine/run/config.py": "from combicam.engine.run.log import event",
        "engine/run/log.py": "def f():\n    from .status import S",
    }
    circle = "circle of engine.run.config, engine.run.log, engine.run.status"
    assert faults(read_imports(tree(tmp_path, changes))) == [circle]


def test_modules_that_are_nowhere(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"engine\.new\.thing: expected a layer"):
        imports = read_imports(tree(tmp_path, {"engine/new/thing.py": "import combicam.errors"}))
        faults(imports)
