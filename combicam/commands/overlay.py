"""``combicam overlay``: explain a few images and draw the heatmaps over them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from combicam.commands.printing import print_table
from combicam.engine.drawing.colormaps import DEFAULT_COLORMAP, colormap
from combicam.engine.explain.config import ComputeConfig
from combicam.engine.explain.explainer import Explainer
from combicam.engine.explain.factory import make_explainer
from combicam.engine.geo.location_target import read_location_target
from combicam.engine.images.decode import MAX_PIXELS
from combicam.engine.outputs.photo_overlay import FIGURE_FORMATS, PhotoPictures
from combicam.errors import DecodeError
from combicam.export.models.models import ModelConfig
from combicam.export.spec import CamSpec


@dataclass(frozen=True)
class Config:
    """Explain a few images and draw the heatmaps over them at full resolution.

    Args:
        images: image files.
        output: folder for the overlays.
        model: which model.
        cam: what to compute; an artifact has its own.
        spec: method, layers and fusion by one name: ``combicam``, ``combicam+``,
            ``pytorch-grad-cam`` or ``torchcam``; or a JSON file of ``combicam recommend``. Options
            of the method that are not at their defaults override it.
        compute: device, precision and backend.
        explain: what to explain instead of the best classes, see ``combicam run --help``.
        figure: also draw a figure: input, maps of some layers, and overlays side by side.
        figure_format: ``png``, or ``pdf`` or ``svg`` for papers.
        colormap: ``viridis``, ``cividis``, ``inferno``, ``jet``.
        max_pixels: refuse images whose header declares more pixels.

    Raises:
        ValueError: an unknown colormap or format.
    """

    images: tyro.conf.Positional[tuple[Path, ...]]
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    model: ModelConfig
    cam: CamSpec = field(default_factory=CamSpec)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    explain: tuple[str, ...] = ()
    figure: bool = False
    figure_format: str = "png"
    colormap: str = DEFAULT_COLORMAP
    max_pixels: int = MAX_PIXELS
    spec: str | None = None

    def __post_init__(self) -> None:
        if self.spec is not None:
            object.__setattr__(self, "cam", self.cam.overriding(CamSpec.read(self.spec)))
        colormap(self.colormap)  # refuses an unknown one
        if self.figure_format not in FIGURE_FORMATS:
            raise ValueError(
                f"overlay: expected figure_format in {FIGURE_FORMATS}, got {self.figure_format!r}"
            )


def main(config: Config) -> None:
    """Draw the overlays; report an image that cannot be read, and go on with the others."""
    if not config.images:
        raise ValueError("overlay: expected images, got none; name some: combicam overlay a.jpg …")
    explainer = _explainer(config)
    if explainer.note:
        print(explainer.note, file=sys.stderr)
    pictures = PhotoPictures(
        explainer,
        read_location_target(config.explain, explainer),
        config.colormap,
        config.figure_format if config.figure else None,
        config.max_pixels,
    )
    config.output.mkdir(parents=True, exist_ok=True)
    failed = 0
    rows = [("image", "class, its probability, overlay")]
    for path, stem in zip(config.images, file_stems(config.images), strict=True):
        try:
            answers = pictures.draw(path, config.output / stem)
        except (OSError, DecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            print(f"combicam: error: {path}: {reason}", file=sys.stderr)
            failed += 1
        else:
            rows += [(path.name, answer) for answer in answers]
    if len(rows) > 1:
        print_table(rows)
    if failed:
        raise SystemExit(1)


def _explainer(config: Config) -> Explainer:
    cam = config.cam
    if config.explain and not config.model.is_artifact:
        cam = replace(cam, targets=len(config.explain))
    return make_explainer(config.model, cam, config.compute, keep_layers=config.figure)


def file_stems(paths: Sequence[Path]) -> list[str]:
    """Names of the overlays, without suffix; equal names from several folders get numbers."""
    stems: list[str] = []
    for path in paths:
        stem, number = path.stem, 2
        while stem in stems:
            stem, number = f"{path.stem}-{number}", number + 1
        stems.append(stem)
    return stems
