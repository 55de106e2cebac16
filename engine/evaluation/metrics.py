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
from combicam.export.classes.classes import ClassTable
from combicam.export.preprocess import Preprocess

# Metric -> whether higher is better.
METRICS = {
    "deletion": False,
    "insertion": True,
    "drop": False,
    "increase": True,
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

    Raises:
        ValueError: an invalid value.
    """

    steps: int = 20
    baseline: str = "blur"
    rule: str = "trapezoid"
    tolerance: float = 15.0
    threshold: float = 0.5
    radius_km: float = DENSITY_KM

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
        ):
            if not fits:
                raise ValueError(f"evaluate: expected {name} {expected}, got {getattr(self, name)}")


@dataclass(frozen=True)
class Subject:
    """Images to measure maps of, with everything that their maps share.

    Attributes:
        images, blank: float [B,3,H,W], normalised; the images, and their replacement.
        ends: logits of the two.
        quantities: measured while pixels are removed.
        masks: bool [B,H,W], the evidence; None if unknown.
        has_mask: bool [B], which images have a mask.
    """

    images: Tensor
    blank: Tensor
    ends: tuple[Tensor, Tensor]
    quantities: Mapping[str, Quantity]
    masks: Tensor | None = None
    has_mask: Tensor | None = None

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
    """

    def __init__(
        self,
        network: Network,
        preprocess: Preprocess,
        settings: MetricSettings,
        classes: ClassTable | None = None,
        batch_size: int = 64,
    ) -> None:
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
    ) -> Subject:
        """Compute what all maps of a batch share.

        Args:
            images: float [B,3,H,W], normalised.
            targets: int64 [B], the explained classes.
            masks: bool [B,H,W].
            has_mask: bool [B]; default: all images have a mask.
        """
        blank = baseline_images(images, self.settings.baseline, self._preprocess)
        quantities = {"probability": probability(targets)}
        if self._places is not None:
            quantities |= place_quantities(targets, self._places, self.settings.radius_km)
        if masks is not None and has_mask is None:
            has_mask = torch.ones(len(masks), dtype=torch.bool, device=masks.device)
        ends = self.network(images), self.network(blank)
        return Subject(images, blank, ends, quantities, masks, has_mask)

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
        return values | {
            "drop": average_drop(before, after),
            "increase": confidence_increase(before, after),
        }


def seeds_of(identities: Sequence[str], seed: int = 0) -> list[int]:
    """A seed for each image's random baseline map, from its id only, not from the other images."""
    return [zlib.crc32(f"{seed}:{identity}".encode()) for identity in identities]
