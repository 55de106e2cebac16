"""Find ONNX Runtime for the web, which a site runs, and copy it."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "onnxruntime-web"
VERSION = "1.30.0"  # that npm is asked for
FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
# With WebGPU, and WebAssembly as well.
GPU_FILES = (
    "ort.webgpu.min.mjs",
    "ort-wasm-simd-threaded.asyncify.mjs",
    "ort-wasm-simd-threaded.asyncify.wasm",
)
_INSTALLED = Path("node_modules") / PACKAGE
_NPM_S = 300


@dataclass(frozen=True)
class WebRuntime:
    """Whether a site has ONNX Runtime.

    Attributes:
        source: where its files came from; empty if the site has none.
        missing: why not, and what to do; empty if the site has them.
    """

    source: str
    missing: str = ""


def runtime_folder(given: Path | None, start: Path, names: tuple[str, ...] = FILES) -> Path | None:
    """The folder that holds the files: the given one, or of an installed package; None if none.

    Args:
        given: it, or the folder of the npm package, or one in which ``npm i onnxruntime-web`` ran.
        start: where to look for ``node_modules`` if none was given: there and in its parents.
        names: ``FILES`` or ``GPU_FILES``.

    Raises:
        ValueError: the given folder does not hold them.
    """
    if given is None:
        installed = (folder / _INSTALLED / "dist" for folder in (start, *start.parents))
        return next((folder for folder in installed if _holds(folder, names)), None)
    for folder in (given, given / "dist", given / _INSTALLED / "dist"):
        if _holds(folder, names):
            return folder
    raise ValueError(
        f"web site: expected a folder with {', '.join(names)}, got {given}; give the folder 'dist' "
        f"of the npm package {PACKAGE}"
    )


def copy_runtime(folder: Path | None, target: Path, names: tuple[str, ...] = FILES) -> WebRuntime:
    """Copy ONNX Runtime to a new folder, from another, or as npm downloads it.

    Args:
        folder: see :func:`runtime_folder`.
        target: the new folder; it stays empty if there is nothing to copy.
        names: ``FILES`` or ``GPU_FILES``.
    """
    target.mkdir()
    if folder is None:
        return _downloaded(target, names)
    for name in names:
        shutil.copyfile(folder / name, target / name)
    return WebRuntime(str(folder))


def _holds(folder: Path, names: tuple[str, ...]) -> bool:
    return all((folder / name).is_file() for name in names)


def _downloaded(target: Path, names: tuple[str, ...]) -> WebRuntime:
    """Download the package's archive, without running anything of it."""
    package = f"{PACKAGE}@{VERSION}"
    npm = shutil.which("npm")
    if npm is None:
        return _missing("npm is not installed", names)
    with tempfile.TemporaryDirectory() as folder:
        command = [npm, "pack", package, "--ignore-scripts", "--silent", "--fetch-retries=1"]
        try:
            done = subprocess.run(
                [*command, "--pack-destination", folder],
                cwd=folder,
                capture_output=True,
                text=True,
                timeout=_NPM_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return _missing(f"npm took more than {_NPM_S} s", names)
        archives = list(Path(folder).glob("*.tgz"))
        if done.returncode != 0 or len(archives) != 1:
            said = (done.stderr or done.stdout).strip().splitlines() or ["no reason given"]
            return _missing(f"npm cannot download {package} ({said[-1]})", names)
        with tarfile.open(archives[0]) as archive:
            for name in names:
                file = archive.extractfile(f"package/dist/{name}")
                assert file is not None
                with file, (target / name).open("wb") as copy:
                    shutil.copyfileobj(file, copy)
    return WebRuntime(f"npm, {package}")


def _missing(why: str, names: tuple[str, ...]) -> WebRuntime:
    return WebRuntime(
        "",
        f"{why}: copy {', '.join(names)} from the folder dist of the npm package {PACKAGE} into "
        "ort/, or export with --onnxruntime-web FOLDER",
    )
