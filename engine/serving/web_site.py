"""Write a static web site that explains photos in the visitor's browser."""

from __future__ import annotations

import html
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from combicam.engine.drawing.colormaps import COLORMAPS, DEFAULT_COLORMAP, colormap_hex
from combicam.engine.explain.artifact_export import VERIFY_IMAGES, export
from combicam.engine.explain.artifact_verify import Verification
from combicam.engine.explain.explainer import Explainer
from combicam.engine.explain.sessions import ArtifactSession
from combicam.engine.report.page import fill, one_script, page_text, script_json
from combicam.engine.serving.triton_repository import model_name
from combicam.engine.serving.web_runtime import FILES, GPU_FILES, copy_runtime, runtime_folder
from combicam.errors import ArtifactError
from combicam.export.classes.classes import ClassTable
from combicam.export.formats.artifact import Description, read_description

MODEL = "model.onnx"
MAX_SAMPLES = 12
# What browsers decode.
PHOTOS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".avif")
_MODULES = ("explain.js", "network.js", "preprocess.js", "worker.js")
# Of the report: elements, maps, what is chosen, its controls.
_REPORT_SCRIPTS = ("format.js", "heat.js", "state.js", "look.js")


@dataclass(frozen=True)
class WebSite:
    """A site that explains photos.

    Attributes:
        path: its folder.
        runtime: where its ONNX Runtime came from; empty without one.
        missing: why it has no ONNX Runtime and what to do; empty if it has one.
        verification: of the ONNX file against the model; None without ``verify``, and for an
            explainer that was loaded from a file.
    """

    path: Path
    runtime: str
    missing: str
    verification: Verification | None


def export_web_site(
    explainer: Explainer,
    folder: str | Path,
    *,
    samples: Sequence[str | Path] = (),
    runtime: str | Path | None = None,
    webgpu: bool = False,
    title: str | None = None,
    opset: int | None = None,
    weights: str = "float32",
    verify: int | bool = VERIFY_IMAGES,
    tolerance: float | None = None,
    allow_disagreement: bool = False,
) -> WebSite:
    """Write a static site: choose a photo, see its best classes and the heatmap of each.

    The network runs in a worker of the page, by ONNX Runtime's WebAssembly or WebGPU. Photos are
    decoded, resized and normalised as in Python, and stay on the visitor's machine. Any web server
    serves the folder. It appears complete or not at all.

    Args:
        explainer: of a model that takes photos, or loaded from an .onnx file that takes classes as
            targets; with ``keep_layers``, the page shows the map of every layer.
        folder: new or empty; created if its parent exists.
        samples: photos to offer, or folders of them; the first 12.
        runtime: folder with the files of the npm package onnxruntime-web; default: of an installed
            one (``node_modules`` here or in a parent), else npm downloads it. Without npm, the site
            has none: ``missing`` says what to copy.
        webgpu: copy the runtime that has WebGPU, too, which is twice as large. The page explains
            its first photo by both, and goes on with WebGPU if it agrees and is faster.
        title: of the page; default: the last part of the model's name.
        opset, weights, verify, tolerance, allow_disagreement: as for
            :func:`~combicam.engine.explain.artifact_export.export`.

    Raises:
        ValueError: a folder that is not empty, a model of other images than photos, maps that are
            not fused, or a runtime folder without its files.
        FileNotFoundError: the folder's parent or a sample does not exist.
        ArtifactError: an explainer of another file, weights beyond 1.9 GB, or a file that
            disagrees with the model.
        TraceError: the graph cannot be written as ONNX.
    """
    folder = Path(folder).resolve()
    check_site(folder)
    _check_explainer(explainer)
    photos = _sample_files(samples)
    names = GPU_FILES if webgpu else FILES
    found = runtime_folder(None if runtime is None else Path(runtime), Path.cwd(), names)
    workshop = folder if os.path.ismount(folder) else folder.parent
    with tempfile.TemporaryDirectory(prefix=".combicam-", dir=workshop) as temporary:
        draft = Path(temporary) / "site"  # with ordinary permissions, unlike its parent
        draft.mkdir()
        if isinstance(explainer.session, ArtifactSession):
            verification = None
            _check_weights(explainer.session.path)
            shutil.copyfile(explainer.session.path, draft / MODEL)
        else:
            verification = export(
                explainer,
                draft / MODEL,
                opset=opset,
                weights=weights,
                runtime="web",
                verify=verify,
                tolerance=tolerance,
                allow_disagreement=allow_disagreement,
            )
        _check_weights(draft / MODEL)
        description = read_description(draft / MODEL)
        copied = copy_runtime(found, draft / "ort", names)
        title = title or model_name(description.model)
        _write_page(draft, description, photos, title, webgpu)
        _publish(draft, folder)
    return WebSite(folder, copied.source, copied.missing, verification)


def check_site(folder: Path) -> None:
    """Check that a site can be written, before any work is done.

    Raises:
        FileNotFoundError: the folder's parent does not exist.
        ValueError: the folder is a file, or not empty.
    """
    folder = folder.resolve()
    if not folder.parent.is_dir():
        raise FileNotFoundError(
            f"web site: expected an existing folder, got {folder.parent}; make it"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        kind = "a folder with files in it" if folder.is_dir() else "a file"
        raise ValueError(
            f"web site: expected a new or empty folder, got {folder}, {kind}; remove it, or choose "
            "another"
        )


def _check_explainer(explainer: Explainer) -> None:
    """Check that the page can ask the network for what it shows."""
    explainer.preprocess.check_photos("web site")
    session = explainer.session
    if isinstance(session, ArtifactSession) and session.path.suffix != ".onnx":
        raise ArtifactError(
            f"web site: expected a model or an .onnx file, which browsers can run, got "
            f"{session.path}; export the model itself"
        )
    signature = explainer.description.signature
    if isinstance(session, ArtifactSession) and signature.target_input != "classes":
        raise ArtifactError(
            f"web site: expected a file with target_input 'classes', got "
            f"{signature.target_input!r} in {session.path}; export the model itself"
        )
    if explainer.spec.fuse == "none":
        raise ValueError(
            "web site: expected a fusion, got fuse='none'; choose one, and keep_layers "
            "(--keep-layers) to see every layer, too"
        )


def _check_weights(model: Path) -> None:
    if model.with_name(f"{model.name}.data").exists():
        raise ArtifactError(
            "web site: expected weights of at most 1.9 GB, which a browser can hold, got more; "
            "export a smaller model, or serve this one with --triton-repository"
        )


def _sample_files(samples: Sequence[str | Path]) -> list[Path]:
    """The photos to offer."""
    found: list[Path] = []
    for sample in map(Path, samples):
        if not sample.exists():
            raise FileNotFoundError(f"web site: expected a sample photo, got {sample}")
        inside = sorted(sample.iterdir()) if sample.is_dir() else [sample]
        photos = [path for path in inside if path.suffix.lower() in PHOTOS]
        if not photos:
            raise ValueError(
                f"web site: expected photos that browsers decode ({', '.join(PHOTOS)}) as samples, "
                f"got {sample}"
            )
        found += photos
    return found[:MAX_SAMPLES]


def _write_page(
    draft: Path, description: Description, photos: list[Path], title: str, webgpu: bool
) -> None:
    """Write everything but the network and its runtime."""
    (draft / "samples").mkdir()
    samples = []
    for i, photo in enumerate(photos):
        file = f"samples/{i + 1:02d}{photo.suffix.lower()}"
        shutil.copyfile(photo, draft / file)
        samples.append({"file": file, "name": photo.stem.replace("_", " ")})
    for name in _MODULES:
        (draft / name).write_text(_site_text(name), encoding="utf-8")
    app = one_script([*map(page_text, _REPORT_SCRIPTS), _site_text("app.js")])
    (draft / "app.js").write_text(app, encoding="utf-8")
    style = page_text("report.css") + _site_text("site.css")
    (draft / "style.css").write_text(style, encoding="utf-8")
    # Node.js then takes the scripts for modules.
    (draft / "package.json").write_text('{"type": "module", "private": true}\n', encoding="utf-8")
    (draft / "model.json").write_text(description.to_json() + "\n", encoding="utf-8")
    data = _page_data(description, samples, title) | {"webgpu": webgpu}
    page = fill(
        _site_text("index.html"),
        {"title": html.escape(f"{title} · combicam"), "data": script_json(data)},
    )
    (draft / "index.html").write_text(page, encoding="utf-8")


def _page_data(
    description: Description, samples: list[dict[str, str]], title: str
) -> dict[str, Any]:
    """What the page's scripts take from it; the report's scripts name most of it."""
    spec, layers = description.spec, description.layers
    kept = [info.name for info in layers if f"map:{info.name}" in description.outputs]
    depth = "1 layer" if len(layers) == 1 else f"{len(layers)} layers"
    words = (description.model, spec.method, depth, f"score {spec.score}", f"fused by {spec.fuse}")
    return {
        "name": title,
        "line": " · ".join(words),
        "note": description.note,
        "input_size": description.signature.input_size,
        "samples": samples,
        "colormap": DEFAULT_COLORMAP,
        "colormaps": {name: colormap_hex(name) for name in COLORMAPS},
        "facts": {
            # Of one class at a time.
            "spec": asdict(spec) | {"targets": 1},
            "names": _class_names(description.classes),
        },
        "maps": {"corners": spec.align_corners, "layers": kept},
        "cards": [],
    }


def _class_names(classes: ClassTable | None) -> list[str]:
    """A name for each class, or the centre of its cell; the page numbers what has neither."""
    if classes is None:
        return []
    if classes.names:
        return list(classes.names)
    where = zip(classes.latitudes, classes.longitudes, strict=True)
    return [f"{lat:.2f}, {lon:.2f}" for lat, lon in where]


def _publish(draft: Path, folder: Path) -> None:
    """Give the site its name; of a mounted folder, move the files into it, the page last."""
    try:
        if os.path.ismount(folder):
            for path in sorted(draft.iterdir(), key=lambda p: p.name == "index.html"):
                path.rename(folder / path.name)
        else:
            draft.rename(folder)  # replaces an empty folder
    except OSError as error:
        raise ArtifactError(f"web site: {folder}: {error}") from error


def _site_text(name: str) -> str:
    return files("combicam.engine.serving").joinpath("site", name).read_text(encoding="utf-8")
