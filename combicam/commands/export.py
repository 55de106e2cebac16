"""``combicam export``: export a model and its explanation as one file, for a server, as a site."""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from combicam.commands.printing import Rows, check_rows, print_table
from combicam.demo.sample_photos import write_sample_photos
from combicam.engine.explain.artifact_export import VERIFY_IMAGES, check_output, export
from combicam.engine.explain.artifact_verify import Verification
from combicam.engine.explain.config import ComputeConfig
from combicam.engine.explain.explainer import Explainer
from combicam.engine.explain.factory import make_explainer
from combicam.engine.serving.triton_repository import check_repository, export_triton_repository
from combicam.engine.serving.web_site import check_site, export_web_site
from combicam.export.formats.artifact import check_weights
from combicam.export.formats.onnx_opset import check_opset
from combicam.export.formats.runtimes import check_file, check_runtime
from combicam.export.models.models import ModelConfig
from combicam.export.spec import CamSpec
from combicam.export.trace.signature import check_target_input


@dataclass(frozen=True)
class Config:
    """Export a model and its explanation as one file, for a server, or as a web site.

    Args:
        output: model.onnx, model.ts, or model.pt2, which is compiled for the device.
        triton_repository: model repository for NVIDIA Triton Inference Server, instead of
            ``output`` or in addition.
        web: folder of a static web site that explains photos in the visitor's browser, instead of
            the others or in addition; new or empty.
        web_samples: photos that the site offers, or folders of them; default: the demo's
            postcards for its model, else the photographs of the extra ``photos``.
        web_title: title of the site's page; default: the model's name.
        onnxruntime_web: folder with the files of the npm package onnxruntime-web, for the site;
            default: ``node_modules`` here or in a parent, else npm downloads them.
        web_gpu: the site takes WebGPU where a browser has it and it is faster; its ONNX Runtime is
            twice as large.
        model: which model.
        cam: what to compute.
        spec: method, layers and fusion by one name: ``combicam``, ``combicam+``,
            ``pytorch-grad-cam`` or ``torchcam``; or a JSON file of ``combicam recommend``. Options
            of the method that are not at their defaults override it.
        amp_dtype: precision of the computation: float32, bfloat16, float16.
        device: where the model runs while it is exported.
        target_input: ``classes`` (a second input names them), ``none`` (the best classes), or
            ``weights`` (regions and contrasts).
        opset: of the ONNX file, from 13 to the newest that is installed; 18 if it is not given.
        weights: how the ONNX file stores them; ``float16`` halves it, and rounds them to 11 bits;
            the computation stays in float32.
        runtime: which will run the ONNX file of ``output``: ``onnxruntime-cpu``,
            ``onnxruntime-cuda``, ``openvino``, ``tensorrt`` or ``web``; default: ONNX Runtime on
            the device. The operators are those that it likes, and the command says what it lacks.
        keep_layers: also return every layer's map.
        verify: number of random images on which the file is compared with the model; 0 for none.
        tolerance: largest accepted difference; the default depends on the precision.
        force: keep a file that disagrees with the model.
        verbose: print how many nodes the graph has before and after each rewrite.
    """

    model: ModelConfig
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    triton_repository: Path | None = None
    web: Path | None = None
    web_samples: tuple[Path, ...] = ()
    web_title: str | None = None
    onnxruntime_web: Path | None = None
    web_gpu: bool = False
    cam: CamSpec = field(default_factory=CamSpec)
    amp_dtype: str | None = None
    device: str = "cpu"
    target_input: str = "classes"
    opset: int | None = None
    weights: Literal["float32", "float16"] = "float32"
    runtime: Annotated[
        Literal["onnxruntime-cpu", "onnxruntime-cuda", "openvino", "tensorrt", "web"] | None,
        tyro.conf.arg(name="for"),
    ] = None
    keep_layers: bool = False
    verify: int = VERIFY_IMAGES
    tolerance: float | None = None
    force: bool = False
    verbose: bool = False
    spec: str | None = None

    def __post_init__(self) -> None:
        if self.spec is not None:
            object.__setattr__(self, "cam", self.cam.overriding(CamSpec.read(self.spec)))


def main(config: Config) -> None:
    """Write the requested outputs, and print how far each one is from the model's own."""
    if config.output is None and config.triton_repository is None and config.web is None:
        raise ValueError(
            "export: expected a file or a folder to write, got none; give --output model.onnx or "
            "--triton-repository DIR, or --web DIR for a site"
        )
    check_target_input(config.target_input)
    if config.output is not None:
        check_output(config.output)
        check_opset(config.opset, config.output.suffix)
        check_runtime(config.runtime, config.output.suffix)
        check_weights(config.weights, config.output.suffix, config.runtime)
    elif config.runtime is not None:
        raise ValueError(
            f"export: expected --output model.onnx with --for {config.runtime}, got none; a site "
            "and a server's model are always for theirs"
        )
    if config.triton_repository is not None:
        check_repository(config.triton_repository)
    if config.web is not None:
        check_site(config.web)
        if config.target_input != "classes":
            raise ValueError(
                "export: expected target_input 'classes' with --web, whose page names the class "
                f"to explain, got {config.target_input!r}; leave it out"
            )
    compute = ComputeConfig(config.device, config.amp_dtype)
    with _rewrites_shown(config.verbose):
        explainer = make_explainer(
            config.model, config.cam, compute, keep_layers=config.keep_layers
        )
        rows, verification = _write(config, explainer)
    if verification is not None:
        rows += _verification_rows(verification)
    print_table(rows)
    if verification is not None and not verification.agrees:
        print(
            f"combicam: warning: kept a file that disagrees: {verification}",
            file=sys.stderr,
        )


def _write(config: Config, explainer: Explainer) -> tuple[Rows, Verification | None]:
    """Write the file, the folder, or both; what to print, and how well they agree."""
    rows = [("layers", ", ".join(info.name for info in explainer.layers))]
    verification = None
    if config.output is not None:
        verification = export(
            explainer,
            config.output,
            target_input=config.target_input,
            runtime=config.runtime,
            **_options(config),
        )
        size = config.output.stat().st_size / 1e6
        rows.insert(0, ("file", f"{config.output} ({size:.1f} MB)"))
        if config.runtime is not None:
            rows += check_rows(check_file(config.output, config.runtime))
    if config.triton_repository is not None:
        served = export_triton_repository(
            explainer,
            config.triton_repository,
            target_input=config.target_input,
            **_options(config),
        )
        rows.insert(0, ("served model", f"{served.path}: see its README.md"))
        verification = served.verification
    if config.web is not None:
        web_rows, verification = _write_site(config, explainer, config.web)
        rows = [*web_rows, *rows]
    return rows, verification


def _options(config: Config) -> dict[str, Any]:
    """What all outputs take."""
    return {
        "opset": config.opset,
        "weights": config.weights,
        "verify": config.verify,
        "tolerance": config.tolerance,
        "allow_disagreement": config.force,
    }


def _write_site(
    config: Config, explainer: Explainer, folder: Path
) -> tuple[Rows, Verification | None]:
    with tempfile.TemporaryDirectory() as drawn:
        samples = config.web_samples or write_sample_photos(config.model.model, Path(drawn))
        site = export_web_site(
            explainer,
            folder,
            samples=samples,
            runtime=config.onnxruntime_web,
            webgpu=config.web_gpu,
            title=config.web_title,
            **_options(config),
        )
    if site.missing:
        print(f"combicam: warning: the site has no ONNX Runtime: {site.missing}", file=sys.stderr)
    size = sum(path.stat().st_size for path in site.path.rglob("*") if path.is_file()) / 1e6
    rows = [
        ("site", f"{folder} ({size:.1f} MB)"),
        ("onnxruntime-web", site.runtime or "missing, see above"),
        ("open it", f"python -m http.server --directory {folder}, then http://localhost:8000"),
    ]
    return rows, site.verification


def _verification_rows(verification: Verification) -> Rows:
    """Every output's error; for layer maps, only the largest."""
    maps = [o for o in verification.outputs if o.name.startswith("map:")]
    shown = [o for o in verification.outputs if o not in maps]
    shown += sorted(maps, key=lambda o: -o.relative)[:1]
    names = {f"{name}s": name for name in ("heatmap", "logit", "score", "range")}
    names["classes"] = "class"
    return [
        (
            "compared",
            f"{verification.images} images, model in float32, tolerance {verification.tolerance:g}",
        ),
        *(
            (
                f"{names.get(o.name, o.name)} error",
                f"{o.max_abs:.2g} max, {o.mean_abs:.2g} mean (values up to {o.scale:.3g})",
            )
            for o in shown
        ),
    ]


@contextmanager
def _rewrites_shown(wanted: bool) -> Iterator[None]:
    log, handler = logging.getLogger("combicam.export.passes"), logging.StreamHandler()
    before = log.level
    if wanted:
        log.setLevel(logging.INFO)
        log.addHandler(handler)
    try:
        yield
    finally:
        log.setLevel(before)
        log.removeHandler(handler)
