"""Packages that import their names when they are first used."""

from __future__ import annotations

import ast
import importlib
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import combicam
import combicam.engine

INIT = """
from combicam.lazy import make_lazy
__all__ = make_lazy(__name__, {"planet.engine.writing": ("export", "LIMIT")})
"""


@pytest.fixture
def planet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package whose function ``export`` has the name of one of its packages."""
    for folder in ("export", "engine"):
        (tmp_path / "planet" / folder).mkdir(parents=True)
        (tmp_path / "planet" / folder / "__init__.py").touch()
    (tmp_path / "planet/__init__.py").write_text(INIT)
    (tmp_path / "planet/export/spec.py").write_text("LIMIT = 3\n")
    (tmp_path / "planet/engine/broken.py").write_text("import no_such_library_anywhere\n")
    (tmp_path / "planet/engine/writing.py").write_text(
        "from planet.export.spec import LIMIT\ndef export():\n    return LIMIT\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "planet"]:
        del sys.modules[name]


@pytest.mark.parametrize(
    "orders",
    [
        "import planet",
        "import planet.export",
        "import planet.export.spec",
        "from planet.export.spec import LIMIT; import planet",
        "from planet import export; import planet.export.spec",
        "import planet.engine.writing",
        "import planet; planet.export(); import planet.export.spec",
    ],
)
def test_a_function_wins_over_the_package_of_its_name(planet: None, orders: str) -> None:
    exec(orders, scope := {"__name__": "caller"})
    exec("import planet; from planet import export", scope)
    assert scope["planet"].export() == 3  # type: ignore[attr-defined]
    assert scope["export"] is scope["planet"].export  # type: ignore[attr-defined]
    assert sys.modules["planet.export"] is not scope["export"]


def test_names_come_when_they_are_asked_for(planet: None) -> None:
    package = importlib.import_module("planet")
    assert "planet.engine" not in sys.modules
    assert {"export", "LIMIT"} < set(dir(package))
    assert "planet.engine" not in sys.modules
    assert package.LIMIT == 3 and "planet.engine.writing" in sys.modules
    exec("from planet import *", scope := {})
    assert {"export", "LIMIT"} < set(scope)


def test_modules_are_attributes_and_other_names_are_not(planet: None) -> None:
    package = importlib.import_module("planet")
    assert package.engine.__name__ == "planet.engine"
    for name in ("nothing", "_private", "__wrapped__"):
        with pytest.raises(AttributeError, match=f"'planet' has no attribute '{name}'"):
            getattr(package, name)
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        exec("from planet import nothing")
    with pytest.raises(ModuleNotFoundError, match="no_such_library_anywhere"):
        importlib.import_module("planet.engine.broken")


@pytest.mark.parametrize("package", [combicam, combicam.engine])
def test_type_checkers_and_python_see_the_same_names(package: object) -> None:
    tree = ast.parse(Path(package.__file__).read_text())
    seen = {
        alias.asname: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname is not None
    }
    assert seen == vars(package)["_lazy_names"]
    for name in package.__all__:
        assert getattr(package, name) is not None
    assert combicam.export.__module__ == "combicam.engine.explain.artifact_export"


def test_looking_at_a_run_does_not_import_torch(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from combicam.cli import main\n"
        "for arguments in (['--help'], ['status', '--help'], ['status', 'nowhere']):\n"
        "    try:\n"
        "        main(arguments)\n"
        "    except SystemExit as error:\n"
        "        print(error)\n"
        "print('torch' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert "Explain any number of images into a run directory." in done.stdout
    assert "expected a run directory, got nowhere" in done.stdout
    assert done.stdout.splitlines()[-1] == "False"


def test_a_package_is_pickled_by_its_name() -> None:
    """As it is with functions of a user's script that are sent to other processes."""
    assert pickle.loads(pickle.dumps(combicam)) is combicam
    cloudpickle = pytest.importorskip("cloudpickle")
    scope = {"__name__": "__main__", "combicam": combicam}
    exec("def version():\n    return combicam.__version__", scope)
    assert pickle.loads(cloudpickle.dumps(scope["version"]))() == combicam.__version__
