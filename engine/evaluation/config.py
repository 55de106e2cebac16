"""Configure an evaluation."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from combicam.engine.evaluation.metrics import MetricSettings
from combicam.engine.explain.config import ComputeConfig
from combicam.engine.images.decode import MAX_PIXELS
from combicam.export.models.models import ModelConfig
from combicam.export.spec import FORWARD_METHODS, SCORES
from combicam.kernels.combine import FUSES
from combicam.kernels.weigh import METHODS

_UNIT = ("map", "layer+map", "grid+map")


@dataclass(frozen=True)
class EvaluateConfig:
    """Measure heatmaps against the network, and against two controls that know nothing of it.

    Args:
        input: a run directory, whose stored heatmaps are measured, or photos as for ``run``.
        model: the network; of a run, the one that made it.
        output: folder of evaluation.parquet and evaluation.json; default: the run directory, or
            ``evaluation`` for photos and for runs in an object store.
        methods: what is computed and compared on the same images, with each of ``layers`` and
            ``normalize``; of a run beside what it stored. Default: gradcam, of a run none.
        layers: ``blocks``, ``stages``, ``last``, or names and globs joined by commas; several.
        normalize: ``map``, ``layer+map``, ``grid+map``; several.
        score: what ``methods`` explain: logit, prob, logprob.
        fuse: how they fuse layers: sum, mean, max, product.
        metrics: how maps are measured.
        compute: device, precision and backend.
        images: how many images, drawn at random; None for all.
        masks: folder of PNG masks of the evidence, not 0 inside, over the whole
            upright photo; of the image a/b.jpg it is a/b.jpg.png or a/b.png, of x.tar::b.jpg in
            x.tar/. For pointing, energy, IoU.
        randomisation: also compare the maps of the first batch with those of networks whose layers
            forget their weights from the top, in so many steps; 0 for not.
        batch_size: images at once, and most forward passes at once.
        workers: threads that read and decode.
        seed: of the drawn images and the random control.
        max_pixels: photos with more are refused as ``too_large``.
        progress: show a progress bar on stderr.

    Raises:
        ValueError: a value that cannot be.
    """

    input: tyro.conf.Positional[str]
    model: ModelConfig
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    methods: tuple[str, ...] = ()
    layers: tuple[str, ...] = ("blocks",)
    normalize: tuple[str, ...] = ("map",)
    score: str = "logprob"
    fuse: str = "sum"
    metrics: MetricSettings = field(default_factory=MetricSettings)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    images: int | None = None
    masks: Path | None = None
    randomisation: int = 0
    batch_size: Annotated[int, tyro.conf.arg(aliases=["-b"])] = 32
    workers: int = field(default_factory=lambda: os.cpu_count() or 1)
    seed: int = 0
    max_pixels: int = MAX_PIXELS
    progress: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.model, str):
            object.__setattr__(self, "model", ModelConfig(self.model))
        object.__setattr__(self, "input", str(self.input))
        for name, choices in (
            ("methods", (*METHODS, *FORWARD_METHODS)),
            ("normalize", _UNIT),
            ("layers", None),
        ):
            values = getattr(self, name)
            if isinstance(values, str):
                raise ValueError(f"evaluate: expected {name} as a list, got {values!r}")
            object.__setattr__(self, name, tuple(values))
            unknown = [v for v in values if choices is not None and v not in choices]
            if unknown or (not values and name != "methods") or len(set(values)) < len(values):
                raise ValueError(
                    f"evaluate: expected {name} from {choices or 'rules, names and globs'}, each "
                    f"once, got {values}"
                )
        fuses = tuple(fuse for fuse in FUSES if fuse != "none")
        for name, known in (("score", SCORES), ("fuse", fuses)):
            if getattr(self, name) not in known:
                raise ValueError(f"evaluate: expected {name} in {known}, got {getattr(self, name)}")
        least = {"batch_size": 1, "workers": 1, "max_pixels": 1, "randomisation": 0}
        if self.images is not None:
            least["images"] = 1
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ValueError(f"evaluate: expected {name} >= {low}, got {getattr(self, name)}")
        if self.masks is not None and not Path(self.masks).is_dir():
            raise ValueError(f"evaluate: expected masks as a folder, got {self.masks}: no such")
