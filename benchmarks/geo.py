"""What 31,145 cells cost: the wide head's share of the joint graph, and the prediction density.

Decoding and transfers are in no figure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.harness import Contender, Result, measure
from combicam import Explainer
from combicam.engine.explain.artifact_export import natural_noise
from combicam.engine.geo.density import RADII_KM, prediction_density
from combicam.export.classes.places import EARTH_RADIUS_KM
from combicam.export.models.adapters.certh import Certh
from combicam.export.models.adapters.efficientnet import EfficientNet

NARROW = "joint graph, 2 cells"
DENSITY = "prediction density"
LIMITS = {"cpu": 0.10, "cuda": 0.05}
_CHECKED = 4  # images whose density is compared with a sum over all pairs


@dataclass(frozen=True)
class GeoBenchmark:
    """The joint graph of EfficientNet-B4, all 32 blocks, with the head of all cells and without.

    Args:
        device: ``cpu`` or ``cuda``.
        batch: images per call; None for 8 on a CPU, 64 on a GPU.
        size: side of the images, pixels.
        cells: of the wide head.
        dtype: ``float32``, ``bfloat16`` or ``float16``.
        density_images: how many rows of probabilities the density is summed for.
        rounds: how often every contender is timed, in turn; medians are reported.
        threads: of torch on the CPU.
        output: where the JSON goes.
    """

    device: str = "cpu"
    batch: int | None = None
    size: int = 300
    cells: int = 31_145
    dtype: str = "float32"
    density_images: int = 256
    rounds: int = 7
    threads: int = 2
    output: Path = Path("benchmarks/results/geo-cpu.json")

    def __post_init__(self) -> None:
        if self.device not in LIMITS:
            raise ValueError(f"geo: expected device in {list(LIMITS)}, got {self.device!r}")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("geo: expected a GPU for device cuda, got none; take --device cpu")
        if self.cells < 3:
            raise ValueError(f"geo: expected cells >= 3, got {self.cells}")

    @property
    def images(self) -> int:
        """Per call."""
        return self.batch or (64 if self.device == "cuda" else 8)


def geo(
    config: GeoBenchmark, say: Callable[[str], None], backbone: EfficientNet | None = None
) -> list[Result]:
    """Measure; the wide graph's row gets the share of its head.

    Args:
        config: what and how often.
        say: progress.
        backbone: another one than EfficientNet-B4, for tests.
    """
    torch.set_num_threads(config.threads)
    params = {
        "device": config.device,
        "batch": config.images,
        "size": config.size,
        "dtype": config.dtype,
    }
    say(f"geo: {params}, {config.cells} cells")
    narrow, wide = measure(graphs(config, backbone), params, config.rounds, say)
    if narrow.p50 is not None and wide.p50 is not None:
        share, limit = head_share(narrow, wide), LIMITS[config.device]
        wide.params = {**params, "cells": config.cells, "head_share": share, "limit": limit}
    rows = {"device": config.device, "images": config.density_images, "cells": config.cells}
    return [narrow, wide, *measure(densities(config), rows, config.rounds, say)]


def head_share(narrow: Result, wide: Result) -> float:
    """Median over the rounds of 1 - time without the wide head / time with it."""
    pairs = zip(narrow.seconds, wide.seconds, strict=True)
    return float(np.median([1 - without / with_it for without, with_it in pairs]))


def graphs(config: GeoBenchmark, backbone: EfficientNet | None) -> Iterator[Contender]:
    """The same backbone with two heads."""
    torch.manual_seed(0)
    size = (config.size, config.size)
    trunk = _settled(backbone or EfficientNet(), size).to(config.device)
    images = natural_noise(config.images, size, seed=2).to(config.device)
    for name, cells in ((NARROW, 2), (f"joint graph, {config.cells} cells", config.cells)):
        head = nn.Linear(trunk.out_features, cells, device=config.device)
        network = Certh(trunk, head).eval()
        with torch.no_grad():
            logits = network(images)
        yield Contender(
            name,
            _explained(network, images, config),
            config.images,
            _error(logits),
            # In 16 bit the forward itself is that far from float32.
            tolerance=1e-3 if config.dtype == "float32" else 0.2,
        )


def _settled(backbone: EfficientNet, size: tuple[int, int]) -> EfficientNet:
    """Normalisations that fit the activations: no denormal numbers."""
    norms = [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
    backbone.train()
    with torch.no_grad():
        backbone(natural_noise(4, size, seed=1))
    return backbone.eval()


def _explained(
    network: Certh, images: Tensor, config: GeoBenchmark
) -> Callable[[], Callable[[], Any]]:
    def prepare() -> Callable[[], Any]:
        explainer = Explainer(network, (config.size, config.size), dtype=config.dtype)
        explainer(images)
        return lambda: explainer(images)

    return prepare


def _error(logits: Tensor) -> Callable[[Any], float]:
    scale = float(logits.abs().max())
    return lambda found: float((found.logits - logits).abs().max()) / scale


def densities(config: GeoBenchmark) -> Iterator[Contender]:
    """The probability around the predicted cell, within all radii."""
    generator = torch.Generator().manual_seed(0)
    n, images = config.cells, config.density_images
    z = torch.rand(n, generator=generator, dtype=torch.float64) * 2 - 1
    latitudes = z.asin().rad2deg()
    longitudes = torch.rand(n, generator=generator, dtype=torch.float64) * 360 - 180
    logits = 4 * torch.randn(images, n, generator=generator)
    probabilities = logits.softmax(1).to(config.device)
    predicted = probabilities.argmax(1)

    def density() -> Tensor:
        return prediction_density(probabilities, latitudes, longitudes, predicted, RADII_KM)

    def error(found: Tensor) -> float:
        rows = min(_CHECKED, images)
        expected = _by_haversine(probabilities[:rows], latitudes, longitudes, predicted[:rows])
        return float((found[:rows].cpu().double() - expected).abs().max())

    yield Contender(DENSITY, lambda: density, images, error, tolerance=1e-5)


def _by_haversine(
    probabilities: Tensor, latitudes: Tensor, longitudes: Tensor, predicted: Tensor
) -> Tensor:
    """The same, written again, one distance at a time: float64 [B,R]."""
    lat, lon = latitudes.deg2rad(), longitudes.deg2rad()
    rows = []
    for p, center in zip(probabilities.cpu().double(), predicted.tolist(), strict=True):
        a = ((lat - lat[center]) / 2).sin() ** 2
        a = a + lat.cos() * lat[center].cos() * ((lon - lon[center]) / 2).sin() ** 2
        km = 2 * EARTH_RADIUS_KM * a.sqrt().asin()
        rows.append(torch.stack([p[km <= radius].sum() for radius in RADII_KM]))
    return torch.stack(rows)


def geo_table(rows: list[Result]) -> str:
    """Markdown, and whether the head's share is within its limit."""
    lines = ["| | s per call (p20–p80) | images/s | max error |", "|---|---|---|---|"]
    share = ""
    for r in rows:
        if r.p50 is None:
            lines.append(f"| {r.name} | failed: {r.error} | | |")
            continue
        lines.append(
            f"| {r.name} | {r.p50:.4f} ({r.p20:.4f}–{r.p80:.4f}) | {r.images_per_s:.2f} "
            f"| {r.max_abs_err:.1e} |"
        )
        if "head_share" in r.params:
            part, limit = r.params["head_share"], r.params["limit"]
            verdict = "within" if part <= limit else "above"
            share = f"\n\nThe wide head: {part:.1%} of the joint graph, {verdict} {limit:.0%}."
    return "\n".join(lines) + share
