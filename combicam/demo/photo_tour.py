"""``combicam demo --photos``: explain photographs by a network of ImageNet, in three ways."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from combicam.demo.photographs import PHOTOGRAPHS, write_photographs
from combicam.demo.tour import DemoConfig, image_list
from combicam.engine import RunConfig, RunSummary, run_images
from combicam.engine.drawing.image_table import TableRow, draw_image_table
from combicam.engine.drawing.notebook import probability
from combicam.engine.drawing.overlay import overlay
from combicam.engine.explain.explainer import Explainer
from combicam.engine.explain.explanation import Explanation
from combicam.engine.explain.factory import make_explainer
from combicam.engine.images.decode import DecodeConfig, decode_image
from combicam.export.models.models import ModelConfig
from combicam.export.preprocess import Preprocess
from combicam.export.spec import CamSpec

MODEL = "combicam.demo.photo_models:lite0"
# What to use for photographs, by its name.
PRESET = "combicam+"
BEST = CamSpec.preset(PRESET)
# Title, second line, and spec of the columns after the input.
COLUMNS = (
    ("Grad-CAM", "last block", CamSpec(layers="last")),
    ("Combi-CAM", "all blocks, summed", CamSpec()),
    (PRESET, "LayerCAM of stages, gated", BEST),
)
FOOTER = "EfficientNet-Lite0, trained on ImageNet. Photographs: CC0 and public domain"
TOP = 3


@dataclass(frozen=True)
class PhotoDemoResult:
    """Results of the demo on photographs.

    Attributes:
        summary: of the run with ``BEST``.
        answers: file -> the best classes and their probabilities, best first.
        picture: PNG with a row for each photograph: input, and the maps of ``COLUMNS``.
    """

    summary: RunSummary
    answers: dict[str, list[tuple[str, float]]]
    picture: Path


def photo_demo(config: DemoConfig) -> PhotoDemoResult:
    """Write the photographs, run over them, and draw three maps of each side by side.

    Raises:
        MissingExtra: without the extra ``photos``.
        ValueError: the folder holds the demo on postcards.
    """
    table = image_list(config)
    photos = config.folder / "photos"
    write_photographs(photos, table)
    explainers = {spec: make_explainer(ModelConfig(MODEL), spec) for _, _, spec in COLUMNS}
    job = RunConfig(
        str(photos),
        config.folder / "run",
        ModelConfig(MODEL),
        BEST,
        overlays=config.overlays,
        progress=config.progress,
    )
    summary = run_images(job, explainers[BEST])
    pixels = read_inputs(photos, explainers[BEST].preprocess)
    explanations = [explainers[spec](pixels) for _, _, spec in COLUMNS]
    answers = _answers(explanations[0], explainers[BEST])
    picture = config.folder / "photos.png"
    Image.fromarray(_draw(pixels, explanations, answers)).save(picture, optimize=True)
    files = [photo.file for photo in PHOTOGRAPHS]
    return PhotoDemoResult(summary, dict(zip(files, answers, strict=True)), picture)


def by_hand(folder: Path) -> list[str]:
    """The commands that explain the demo's photographs in the same way.

    Args:
        folder: of the demo.
    """
    model = f"-m {MODEL} --spec {PRESET}"

    def path(name: str) -> str:
        return shlex.quote(str(folder / name))

    return [
        f"combicam overlay {path('photos/camera.jpg')} -o {path('overlays')} {model} --targets 3",
        f"combicam run {path('photos')} -o {path('my-run')} {model}",
        f"combicam report {path('my-run')} -o {path('report.html')}",
    ]


def read_inputs(photos: Path, preprocess: Preprocess) -> NDArray[np.uint8]:
    """What a network sees of the photographs.

    Args:
        photos: folder of the files.
        preprocess: of the network.

    Returns:
        uint8 [B,H,W,3].
    """
    files = [photos / photo.file for photo in PHOTOGRAPHS]
    decode = DecodeConfig()
    return np.stack([decode_image(f.read_bytes(), preprocess, decode).pixels for f in files])


def _answers(explanation: Explanation, explainer: Explainer) -> list[list[tuple[str, float]]]:
    """The best classes of each image, with their probabilities."""
    classes = explainer.classes
    assert classes is not None
    best = torch.softmax(explanation.logits.float(), 1).topk(TOP)
    return [
        [(classes.name(index), score) for index, score in zip(indices, scores, strict=True)]
        for indices, scores in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def _draw(
    pixels: NDArray[np.uint8],
    explanations: list[Explanation],
    answers: list[list[tuple[str, float]]],
) -> NDArray[np.uint8]:
    rows = []
    for i, (image, ((name, score), *_)) in enumerate(zip(pixels, answers, strict=True)):
        maps = [e.heatmaps[i, 0].float().cpu().numpy() for e in explanations]
        rows.append(TableRow(name, probability(score), [image, *(overlay(image, m) for m in maps)]))
    titles = [("Input", "what the network sees"), *((title, note) for title, note, _ in COLUMNS)]
    return draw_image_table(rows, titles, FOOTER)
