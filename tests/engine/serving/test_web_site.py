"""Web sites that explain photos: complete or not there at all, and nothing from elsewhere."""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from combicam import ArtifactError, ClassTable, Explainer, Preprocess, cli, export, export_web_site
from combicam.engine.serving import web_runtime, web_site
from combicam.engine.serving.web_runtime import FILES, GPU_FILES, copy_runtime, runtime_folder
from combicam.export.formats.artifact import read_description

TRAP = "</script><script>hacked()</script><!--"
EXPECTED = {
    *("index.html", "app.js", "worker.js", "explain.js", "network.js", "preprocess.js"),
    *("style.css", "model.onnx", "model.json", "package.json", "samples", "ort"),
}


def tiny(channels: int = 3) -> nn.Module:
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(channels, 6, 3, 2, 1), nn.ReLU())
    return nn.Sequential(block, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))


def explainer(**options: object) -> Explainer:
    names = ClassTable(names=(TRAP, "b", "Zürich", "d"))
    return Explainer(tiny(), (16, 24), layers="last", classes=names, keep_layers=True, **options)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network as an .onnx file."""
    path = tmp_path_factory.mktemp("exported") / "tiny.onnx"
    export(explainer(), path)
    return path


@pytest.fixture
def runtime(tmp_path: Path) -> Path:
    """What stands for the npm package."""
    folder = tmp_path / "dist"
    folder.mkdir()
    for name in FILES:
        (folder / name).write_bytes(name.encode())
    return folder


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "a_cat.JPG"
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(path, "jpeg")
    return path


def test_the_files(runtime: Path, photo: Path, tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    site = export_web_site(
        explainer(), tmp_path / "site", samples=[photo], runtime=runtime, title=TRAP
    )
    assert site.path == tmp_path / "site" and site.runtime == str(runtime) and not site.missing
    assert site.verification is not None and site.verification.agrees
    assert {path.name for path in site.path.iterdir()} == EXPECTED
    assert {path.name for path in (site.path / "ort").iterdir()} == set(FILES)
    assert (site.path / "samples" / "01.jpg").read_bytes() == photo.read_bytes()
    assert site.path.stat().st_mode & 0o777 == 0o777 & ~_umask()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a_cat.JPG", "dist", "site"]
    stored = (site.path / "model.json").read_text(encoding="utf-8").strip()
    assert stored == read_description(site.path / "model.onnx").to_json()
    page = (site.path / "index.html").read_text(encoding="utf-8")
    assert page.count("</script>") == 2 and "hacked()</script>" not in page
    data = json.loads(re.search(r'id="data">(.*?)</script>', page)[1])  # type: ignore[index]
    assert data["name"] == TRAP and data["facts"]["names"][0] == TRAP
    assert data["maps"]["layers"] == [info.name for info in explainer().layers]
    assert data["samples"] == [{"file": "samples/01.jpg", "name": "a cat"}]
    style = (site.path / "style.css").read_text(encoding="utf-8")
    report = files("combicam.engine.report").joinpath("page", "report.css")
    assert style.startswith(report.read_text(encoding="utf-8"))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_the_page_allows_nothing_from_elsewhere(
    exported: Path, runtime: Path, tmp_path: Path
) -> None:
    site = export_web_site(Explainer.load(exported), tmp_path / "site", runtime=runtime)
    page = (site.path / "index.html").read_text(encoding="utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy
    rules = dict(rule.strip().split(" ", 1) for rule in policy[1].split(";"))
    assert rules["default-src"] == "'none'" and rules["connect-src"] == "'self'"
    allowed = {"'none'", "'self'", "'wasm-unsafe-eval'", "blob:", "data:"}
    assert {word for rule in rules.values() for word in rule.split()} <= allowed
    for path in site.path.iterdir():
        if path.suffix in (".html", ".js", ".css"):
            links = set(re.findall(r"https?://[^\s'\"<`]+", path.read_text(encoding="utf-8")))
            assert links <= {"http://www.w3.org/2000/svg", "http://localhost:8000"}, path


def test_the_runtime_with_webgpu(exported: Path, tmp_path: Path) -> None:
    dist = tmp_path / "dist"
    dist.mkdir()
    common = ["export", "-m", str(exported), "--onnxruntime-web", str(dist), "--web-gpu"]
    for name in FILES:
        (dist / name).write_bytes(b"no WebGPU")
    with pytest.raises(SystemExit, match=r"a folder with ort\.webgpu\.min\.mjs, .* got .*dist"):
        cli.main([*common, "--web", str(tmp_path / "site")])
    for name in GPU_FILES:
        (dist / name).write_bytes(name.encode())
    cli.main([*common, "--web", str(tmp_path / "site")])
    assert {path.name for path in (tmp_path / "site" / "ort").iterdir()} == set(GPU_FILES)
    page = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert json.loads(re.search(r'id="data">(.*?)</script>', page)[1])["webgpu"] is True  # type: ignore[index]
    script = (tmp_path / "site" / "network.js").read_text(encoding="utf-8")
    assert all(f"'{name}'" in script for name in (*FILES, *GPU_FILES))


def test_of_an_exported_file(exported: Path, runtime: Path, tmp_path: Path) -> None:
    site = export_web_site(Explainer.load(exported), tmp_path / "site", runtime=runtime)
    assert site.verification is None
    assert (site.path / "model.onnx").read_bytes() == exported.read_bytes()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Explainer(tiny(4), (16, 24), layers="last", preprocess=None), "4"),
        (lambda: explainer(fuse="none"), "fuse='none'"),
        (lambda: explainer(dtype="bfloat16"), "another dtype than bfloat16 for .onnx"),
        (
            lambda: Explainer(
                tiny(), layers="last", preprocess=Preprocess((16, 16), resize="short-side")
            ),
            "'short-side'",
        ),
    ],
    ids=["channels", "fuse", "dtype", "resize"],
)
def test_networks_without_a_page(
    make: Callable[[], Explainer], words: str, runtime: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=words):
        export_web_site(make(), tmp_path / "site", runtime=runtime)
    assert not (tmp_path / "site").exists()


def test_folders_that_are_taken(exported: Path, runtime: Path, tmp_path: Path) -> None:
    loaded = Explainer.load(exported)
    with pytest.raises(ValueError, match=r"new or empty folder, got .*dist, a folder with files"):
        export_web_site(loaded, runtime, runtime=runtime)
    with pytest.raises(ValueError, match=r"got .*, a file; remove it"):
        export_web_site(loaded, exported, runtime=runtime)
    with pytest.raises(FileNotFoundError, match="existing folder"):
        export_web_site(loaded, tmp_path / "no" / "site", runtime=runtime)


def test_samples_that_are_none(exported: Path, runtime: Path, tmp_path: Path) -> None:
    loaded = Explainer.load(exported)
    with pytest.raises(FileNotFoundError, match="sample photo"):
        export_web_site(loaded, tmp_path / "site", samples=[tmp_path / "no"], runtime=runtime)
    with pytest.raises(ValueError, match=r"photos that browsers decode .* got .*dist"):
        export_web_site(loaded, tmp_path / "site", samples=[runtime], runtime=runtime)
    assert not (tmp_path / "site").exists()


def test_half_a_site_is_none(
    exported: Path, runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever fails, the folder stays as it was, and nothing lies beside it."""

    def broken(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(web_site, "_page_data", broken)
    with pytest.raises(OSError, match="No space"):
        export_web_site(Explainer.load(exported), tmp_path / "site", runtime=runtime)
    assert [path.name for path in tmp_path.iterdir()] == ["dist"]


def test_a_folder_that_another_process_filled(
    exported: Path, runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"

    def meanwhile(*_: object) -> web_runtime.WebRuntime:
        site.mkdir()
        (site / "theirs").write_text("kept")
        return web_runtime.WebRuntime("")

    monkeypatch.setattr(web_site, "copy_runtime", meanwhile)
    with pytest.raises(ArtifactError, match=r"web site: .*site"):
        export_web_site(Explainer.load(exported), site, runtime=runtime)
    assert [path.name for path in site.iterdir()] == ["theirs"]


def test_a_mounted_folder_is_filled(
    exported: Path, runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    site.mkdir()
    before = site.stat().st_ino
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == site)
    export_web_site(Explainer.load(exported), site, runtime=runtime)
    assert site.stat().st_ino == before and {path.name for path in site.iterdir()} == EXPECTED


def test_command(
    exported: Path, runtime: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site = tmp_path / "site"
    common = ["export", "-m", str(exported), "--onnxruntime-web", str(runtime)]
    cli.main([*common, "--web", str(site), "--web-title", "Four classes"])
    said = capsys.readouterr()
    assert "python -m http.server --directory" in said.out and not said.err
    assert "<title>Four classes" in (site / "index.html").read_text()
    torchscript = exported.with_suffix(".ts")
    export(explainer(), torchscript, verify=0)
    for arguments, words in (
        (["-m", str(torchscript)], "an .onnx file, which browsers can run, got .*tiny.ts"),
        (["-m", str(exported), "--target-input", "none"], "target_input 'classes' with --web"),
        (["-m", str(exported), "--onnxruntime-web", str(exported.parent)], "a folder with ort"),
    ):
        with pytest.raises(SystemExit) as refused:
            cli.main(["export", *arguments, "--web", str(tmp_path / "other")])
        error = str(refused.value)
        assert re.search(words, error) and len(error.splitlines()) == 1, error
        assert not (tmp_path / "other").exists()
    with pytest.raises(SystemExit, match="expected a new or empty folder"):
        cli.main([*common, "--web", str(site)])


def test_installed_packages_are_found(runtime: Path, tmp_path: Path) -> None:
    installed = tmp_path / "project" / "node_modules" / "onnxruntime-web" / "dist"
    installed.parent.mkdir(parents=True)
    runtime.rename(installed)
    inside = tmp_path / "project" / "a" / "b"
    inside.mkdir(parents=True)
    assert runtime_folder(None, inside) == installed
    assert runtime_folder(None, tmp_path) is None
    for given in (installed, installed.parent, tmp_path / "project"):
        assert runtime_folder(given, tmp_path) == installed


def npm(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a stand-in for npm in the place of everything else."""
    folder.mkdir()
    path = folder / "npm"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_npm_downloads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tmp_path / "package.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        for name in (*FILES, "../../escaped"):
            member = tarfile.TarInfo(f"package/dist/{name}")
            member.size = len(name)
            tar.addfile(member, io.BytesIO(name.encode()))
    # npm pack PACKAGE … --pack-destination FOLDER
    npm(
        tmp_path / "bin",
        f'for last; do :; done; echo "$@" > {tmp_path}/asked; cp {archive} "$last/p.tgz"',
        monkeypatch,
    )
    found = copy_runtime(None, tmp_path / "ort")
    assert found.source == f"npm, onnxruntime-web@{web_runtime.VERSION}" and not found.missing
    assert {p.name: p.read_text() for p in (tmp_path / "ort").iterdir()} == {n: n for n in FILES}
    asked = (tmp_path / "asked").read_text()
    assert asked.startswith("pack onnxruntime-web@") and "--ignore-scripts" in asked


@pytest.mark.parametrize("script", ["echo no network >&2; exit 1", None])
def test_without_npm_the_site_says_what_to_copy(
    script: str | None,
    exported: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if script is None:
        monkeypatch.setenv("PATH", str(tmp_path))
    else:
        npm(tmp_path / "bin", script, monkeypatch)
    monkeypatch.chdir(tmp_path)
    cli.main(["export", "-m", str(exported), "--web", "site"])
    said = capsys.readouterr().err
    why = "npm is not installed" if script is None else "no network"
    assert why in said and "copy ort.wasm.min.mjs" in said and "into ort/" in said
    assert list((tmp_path / "site" / "ort").iterdir()) == []
    assert (tmp_path / "site" / "index.html").is_file()
