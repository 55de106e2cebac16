"""Configure an evaluation."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from combicam.cores import usable_cores
from combicam.engine.evaluation.metrics import MetricSettings
from combicam.engine.explain.config import ComputeConfig
from combicam.engine.images.decode import MAX_PIXELS
from combicam.export.models.models import ModelConfig
from combicam.export.spec import ALL_METHODS, SCORES
from combicam.kernels.combine import FUSES

_UNIT = ("map", "layer+map", "grid+map")
_FUSES = tuple(fuse for fuse in FUSES if fuse != "none")


@dataclass(frozen=True)
class EvaluateConfig:
    """Evaluate heatmaps against the model, and compare them with two baseline maps.

    Args:
        input: a run directory, whose stored heatmaps are measured, or images as for ``run``.
        model: the model; for a run, the one that made it.
        output: folder for evaluation.parquet and evaluation.json; default: the run directory, or
            ``evaluation`` for images and for runs in an object store.
        methods: methods to compute and compare on the same images, with each of ``layers``,
            ``fuse`` and ``normalize``; for a run, in addition to its stored heatmaps. Default:
            gradcam; for a run, none.
        layers: ``blocks``, ``stages``, ``last``, or names and globs joined by commas; several.
        normalize: ``map``, ``layer+map``, ``grid+map``; several.
        score: the score that ``methods`` explain: logit, prob, logprob.
        fuse: how layers are fused: ``sum``, ``mean``, ``max``, ``product``, ``gated``; several.
        metrics: how maps are measured.
        compute: device, precision and backend.
        images: size of a random sample of the images; None for all.
        masks: folder of PNG masks of the evidence, nonzero inside, that cover the whole upright
            image: for a/b.jpg, a/b.jpg.png or a/b.png; for x.tar::b.jpg, the same in x.tar/. For
            pointing, energy, IoU.
        removal: measure what takes forward passes: deletion, insertion, drop, increase; without
            it and without masks, single images are classified only.
        randomisation: also compare the maps of the first batch with those of the model while its
            layers are randomised from the top, in this many steps; 0 to skip.
        grid: also play the grid pointing game with ``methods``, on mosaics of this many images on a
            side; 0 to skip. A mosaic is as many times larger than the model's input.
        grid_confidence: least probability of the best class of an image in a mosaic.
        mosaics: how many at most; an image stands in one at most.
        batch_size: images per batch, and largest batch of a forward pass.
        workers: threads that read and decode.
        seed: of the sample of images and of the random baseline map.
        max_pixels: refuse images with more pixels as ``too_large``.
        progress: show a progress bar on stderr.

    Raises:
        ValueError: an invalid value.
    """

    input: tyro.conf.Positional[str]
    model: ModelConfig
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    methods: tuple[str, ...] = ()
    layers: tuple[str, ...] = ("blocks",)
    normalize: tuple[str, ...] = ("map",)
    score: str = "logprob"
    fuse: tuple[str, ...] = ("sum",)
    metrics: MetricSettings = field(default_factory=MetricSettings)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    images: int | None = None
    masks: Path | None = None
    removal: bool = True
    randomisation: int = 0
    grid: int = 0
    grid_confidence: float = 0.9
    mosaics: int = 100
    batch_size: Annotated[int, tyro.conf.arg(aliases=["-b"])] = 32
    workers: int = field(default_factory=usable_cores)
    seed: int = 0
    max_pixels: int = MAX_PIXELS
    progress: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.model, str):
            object.__setattr__(self, "model", ModelConfig(self.model))
        object.__setattr__(self, "input", str(self.input))
        for name, choices in (
            ("methods", ALL_METHODS),
            ("normalize", _UNIT),
            ("fuse", _FUSES),
            ("layers", None),
        ):
            values = getattr(self, name)
            if isinstance(values, str) and name == "fuse":
                values = (values,)
            if isinstance(values, str):
                raise ValueError(f"evaluate: expected {name} as a list, got {values!r}")
            object.__setattr__(self, name, tuple(values))
            unknown = [v for v in values if choices is not None and v not in choices]
            if unknown or (not values and name != "methods") or len(set(values)) < len(values):
                raise ValueError(
                    f"evaluate: expected {name} from {choices or 'rules, names and globs'}, each "
                    f"once, got {values}"
                )
        if self.score not in SCORES:
            raise ValueError(f"evaluate: expected score in {SCORES}, got {self.score}")
        least = {"batch_size": 1, "workers": 1, "max_pixels": 1, "randomisation": 0, "mosaics": 1}
        if self.images is not None:
            least["images"] = 1
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ValueError(f"evaluate: expected {name} >= {low}, got {getattr(self, name)}")
        if not self.removal and self.randomisation and self.masks is None:
            raise ValueError("evaluate: expected removal or masks with randomisation, got neither")
        if not self.removal and not self.grid and self.masks is None:
            raise ValueError(
                "evaluate: expected removal, masks or grid, got none of them: nothing would be "
                "measured"
            )
        if self.grid and self.grid < 2:
            raise ValueError(f"evaluate: expected grid >= 2, or 0 to skip it, got {self.grid}")
        if not 0 <= self.grid_confidence < 1:
            raise ValueError(
                f"evaluate: expected grid_confidence in [0, 1), got {self.grid_confidence}"
            )
        if self.masks is not None and not Path(self.masks).is_dir():
            raise ValueError(f"evaluate: expected masks as a folder, got {self.masks}: no such")

    def settings(self) -> dict[str, Any]:
        """What the results depend on, besides the model and the images; JSON-ready."""
        names = ["input", "methods", "layers", "normalize", "score", "fuse", "seed"]
        names += ["removal", "randomisation"]
        names += ["grid", "grid_confidence"] if self.grid else []
        masks = None if self.masks is None else str(self.masks)
        values = {name: getattr(self, name) for name in names}
        return values | {"masks": masks, "metrics": asdict(self.metrics)}
