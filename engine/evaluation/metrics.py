"""Compute all metrics for any number of maps of the same images."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from combicam.engine.evaluation.confidence import average_drop, confidence_increase, shown_alone
from combicam.engine.evaluation.deletion_insertion import (
    RULES,
    Network,
    Quantity,
    area,
    removal_curves,
)
from combicam.engine.evaluation.energy import energy_inside
from combicam.engine.evaluation.overlap import best_iou, iou
from combicam.engine.evaluation.pointing_game import pointing_game
from combicam.engine.evaluation.quantities import DENSITY_KM, place_quantities, probability
from combicam.engine.evaluation.replacement import BASELINES, baseline_images
from combicam.engine.evaluation.road import SHARES, road
from combicam.engine.evaluation.sensitivity import random_regions, region_drops, sensitivity
from combicam.export.classes.classes import ClassTable
from combicam.export.preprocess import Preprocess

# Metric -> whether higher is better.
METRICS = {
    "deletion": False,
    "insertion": True,
    "drop": False,
    "increase": True,
    "sensitivity": True,
    "road": True,
    "morf": False,
    "lerf": True,
    "density_deletion": False,
    "density_insertion": True,
    "shift_km_deletion": True,
    "shift_km_insertion": False,
    "pointing": True,
    "energy": True,
    "iou": True,
    "best_iou": True,
}


@dataclass(frozen=True)
class MetricSettings:
    """How maps are measured.

    Args:
        steps: number of equal steps in which pixels are removed.
        baseline: replacement of removed pixels: ``blur``, a Gaussian of 5 % of the shorter side;
            ``mean``, the mean colour of preprocessing; ``black``.
        rule: for the area under a curve: ``trapezoid``, or the ``mean`` of its points.
        tolerance: of the pointing game, pixels of the model's input.
        threshold: of IoU, as a share of the map's maximum.
        radius_km: of the density, for classes with locations.
        regions: of sensitivity-n, random regions of each image; 0 to skip it.
        road: also measure ROAD, (LeRF - MoRF) / 2 with noisy linear imputation; slow on a CPU.

    Raises:
        ValueError: an invalid value.
    """

    steps: int = 20
    baseline: str = "blur"
    rule: str = "trapezoid"
    tolerance: float = 15.0
    threshold: float = 0.5
    radius_km: float = DENSITY_KM
    regions: int = 32
    road: bool = False

    def __post_init__(self) -> None:
        for name, choices in (("baseline", BASELINES), ("rule", RULES)):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"evaluate: expected {name} in {choices}, got {getattr(self, name)!r}"
                )
        for name, fits, expected in (
            ("steps", self.steps >= 1, ">= 1"),
            ("tolerance", self.tolerance >= 0, ">= 0 pixels"),
            ("threshold", 0 < self.threshold <= 1, "in (0, 1]"),
            ("radius_km", self.radius_km >= 0, ">= 0"),
            ("regions", self.regions == 0 or self.regions >= 3, ">= 3, or 0 to skip"),
        ):
            if not fits:
                raise ValueError(f"evaluate: expected {name} {expected}, got {getattr(self, name)}")

    @property
    def passes_once(self) -> int:
        """Forward passes of an image that all of its maps share, besides the two ends."""
        return self.regions

    def passes(self, maps: int) -> int:
        """Forward passes of an image for so many maps."""
        return maps * (2 * (self.steps - 1) + 1 + self.road * 2 * len(SHARES))


@dataclass(frozen=True)
class Subject:
    """Images to measure maps of, with everything that their maps share.

    Attributes:
        images, blank: float [B,C,H,W], normalised; the images, and their replacement.
        ends: logits of the two.
        quantities: measured while pixels are removed.
        masks: bool [B,H,W], the evidence; None if unknown.
        has_mask: bool [B], which images have a mask.
        seeds: one per image, of what is random.
        regions, drops: of sensitivity-n; None without it.
    """

    images: Tensor
    blank: Tensor
    ends: tuple[Tensor, Tensor]
    quantities: Mapping[str, Quantity]
    masks: Tensor | None = None
    has_mask: Tensor | None = None
    seeds: Sequence[int] = ()
    regions: Tensor | None = None
    drops: Tensor | None = None

    @property
    def probability(self) -> Tensor:
        """Probability of the explained class in the whole images, [B]."""
        everyone = torch.arange(len(self.images), device=self.images.device)
        return self.quantities["probability"](self.ends[0], everyone)


class Metrics:
    """Measures maps against the model, and against masks if there are any.

    Args:
        network: normalised images to logits.
        preprocess: of the model.
        settings: of the metrics.
        classes: if they have locations, density and shift are measured too.
        batch_size: of forward passes.
        of_labels: the classes do not exclude each other: each has a sigmoid of its own.
    """

    def __init__(
        self,
        network: Network,
        preprocess: Preprocess,
        settings: MetricSettings,
        classes: ClassTable | None = None,
        batch_size: int = 64,
        of_labels: bool = False,
    ) -> None:
        self._of_labels = of_labels
        self.network = network
        self.settings = settings
        self._preprocess = preprocess
        self._places = classes if classes is not None and classes.has_places else None
        self._batch_size = batch_size

    def subject(
        self,
        images: Tensor,
        targets: Tensor,
        masks: Tensor | None = None,
        has_mask: Tensor | None = None,
        seeds: Sequence[int] = (),
        removal: bool = True,
    ) -> Subject:
        """Compute what all maps of a batch share.

        Args:
            images: float [B,C,H,W], normalised.
            targets: int64 [B], the explained classes.
            masks: bool [B,H,W].
            has_mask: bool [B]; default: all images have a mask.
            seeds: one per image, of random regions and noise; default: 0, 1, ….
            removal: measure what all maps need for metrics that remove pixels.
        """
        seeds = seeds or range(len(images))
        blank = baseline_images(images, self.settings.baseline, self._preprocess)
        quantities = {"probability": probability(targets, self._of_labels)}
        if self._places is not None:
            quantities |= place_quantities(targets, self._places, self.settings.radius_km)
        if masks is not None and has_mask is None:
            has_mask = torch.ones(len(masks), dtype=torch.bool, device=masks.device)
        ends = self.network(images), self.network(blank)
        regions = drops = None
        if removal and self.settings.regions:
            regions = random_regions(seeds, self.settings.regions)
            of = quantities["probability"]
            drops = region_drops(
                self.network, images, blank, regions, of, ends[0], self._batch_size
            )
        return Subject(images, blank, ends, quantities, masks, has_mask, seeds, regions, drops)

    def measure(self, subject: Subject, maps: Tensor, removal: bool = True) -> dict[str, Tensor]:
        """Metric -> float32 [B]; names and directions in ``METRICS``.

        Args:
            subject: the images.
            maps: float [B,H,W] in [0, 1].
            removal: also compute metrics that take forward passes.
        """
        values = self._by_network(subject, maps) if removal else {}
        if subject.masks is None or subject.has_mask is None:
            return values
        tops = maps.amax((1, 2))[:, None, None].clamp_min(torch.finfo(maps.dtype).tiny)
        against = {
            "pointing": pointing_game(maps, subject.masks, self.settings.tolerance),
            "energy": energy_inside(maps, subject.masks),
            "iou": iou(maps / tops, subject.masks, self.settings.threshold),
            "best_iou": best_iou(maps, subject.masks),
        }
        unknown = ~subject.has_mask
        return values | {name: v.masked_fill(unknown, torch.nan) for name, v in against.items()}

    def _by_network(self, subject: Subject, maps: Tensor) -> dict[str, Tensor]:
        settings, images, blank = self.settings, subject.images, subject.blank
        curves = removal_curves(
            self.network,
            images,
            blank,
            maps,
            subject.quantities,
            settings.steps,
            self._batch_size,
            subject.ends,
        )
        values = {}
        for name in subject.quantities:
            prefix = "" if name == "probability" else f"{name}_"
            for kind, kept in (("deletion", curves.deletion), ("insertion", curves.insertion)):
                values[prefix + kind] = area(kept[name], curves.fractions, settings.rule)
        before = subject.probability
        logits = self.network(shown_alone(images, blank, maps))
        everyone = torch.arange(len(images), device=images.device)
        after = subject.quantities["probability"](logits, everyone)
        values |= {
            "drop": average_drop(before, after),
            "increase": confidence_increase(before, after),
        }
        if subject.regions is not None and subject.drops is not None:
            values["sensitivity"] = sensitivity(maps, subject.regions, subject.drops)
        if settings.road:
            of = subject.quantities["probability"]
            morf, lerf = road(
                self.network, images, maps, of, subject.seeds, batch_size=self._batch_size
            )
            values |= {"road": (lerf - morf) / 2, "morf": morf, "lerf": lerf}
        return values


def seeds_of(identities: Sequence[str], seed: int = 0) -> list[int]:
    """A seed for each image's random baseline map, from its id only, not from the other images."""
    return [zlib.crc32(f"{seed}:{identity}".encode()) for identity in identities]
