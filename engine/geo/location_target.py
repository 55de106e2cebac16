"""Parse the targets that a run explains for every image, from words such as ``truth``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from combicam.engine.explain.protocol import BatchExplainer
from combicam.export.classes.cells import CellTable

TOP = -1  # the best class; the next best is -2, and so on
TRUTH = -(2**62)  # not a possible rank
NO_CLASS = TRUTH - 1
NOT = "-not-"
_NUMBER = r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)"
_PLACE = re.compile(rf"({_NUMBER}),\s*({_NUMBER})")
_WITHIN = re.compile(rf"within:({_NUMBER})\s*km@(.+)")
_FORMS = (
    "top, truth, a class number, s2:TOKEN or TOKEN, LAT,LON, within:KMkm@LAT,LON, under:TOKEN, or "
    "ONE-not-OTHER of two of these other than top and truth"
)


class Located(Protocol):
    """A photo with its ground truth location: degrees, or None."""

    @property
    def id(self) -> str:
        """Unique in the run."""

    @property
    def true_lat(self) -> float | None:
        """Latitude."""

    @property
    def true_lon(self) -> float | None:
        """Longitude."""


Photo = TypeVar("Photo", bound=Located)


@dataclass(frozen=True)
class LocationTarget:
    """K targets of every image.

    Attributes:
        words: the requested targets.
        classes: int64 [K], a class; -k for the k-th best; ``TRUTH``; or ``NO_CLASS`` for a region
            or a contrast.
        weights: float32 [1,K,n] if one of them is a region or a contrast; else None.
        cells: of the classes; only for the target ``truth``.
    """

    words: tuple[str, ...]
    classes: Tensor
    weights: Tensor | None = None
    cells: CellTable | None = None

    @property
    def kind(self) -> str:
        """Kind of the explainer's targets: ``classes`` or ``weights``."""
        return "classes" if self.weights is None else "weights"

    @property
    def needs_truth(self) -> bool:
        """Whether every image needs ground truth."""
        return self.cells is not None

    def targets(self, photos: Sequence[Located], batch: int) -> Tensor:
        """The targets of a batch for the explainer.

        Args:
            photos: of a batch, in order.
            batch: B, padded by repeating the last photo.

        Returns:
            On the CPU: int64 [B,K], or float32 [B,K,n], the same for all (a view).

        Raises:
            ValueError: the target is ``truth``, and a photo has no ground truth.
        """
        if self.weights is not None:
            return self.weights.expand(batch, -1, -1)
        ids = self.classes.repeat(batch, 1)
        if self.cells is not None:
            true = torch.from_numpy(true_classes(self.cells, photos))
            true = torch.cat([true, true[-1:].expand(batch - len(true))])
            ids = torch.where(ids == TRUTH, true[:, None], ids)
        return ids


def true_classes(cells: CellTable, photos: Sequence[Located]) -> NDArray[np.int64]:
    """Ground truth classes of photos: the cell that contains the location, else the nearest.

    Raises:
        ValueError: a photo has no ground truth.
    """
    places = [(photo.true_lat, photo.true_lon) for photo in located(photos)]
    return cells.classes_at(*zip(*places, strict=True))


def located(photos: Iterable[Photo], needed: bool = True) -> Iterator[Photo]:
    """Pass photos on, checking their ground truth.

    Raises:
        ValueError: ground truth is needed, and a photo has none.
    """
    for photo in photos:
        if needed and (photo.true_lat is None or photo.true_lon is None):
            raise ValueError(
                f"explain truth: expected ground truth for every input, got none for "
                f"{photo.id!r}; give its latitude and longitude in the list, or with --truth FILE"
            )
        yield photo


def read_location_target(words: Sequence[str], explainer: BatchExplainer) -> LocationTarget | None:
    """Parse the targets of a run; None without words, which means the best classes.

    Args:
        words: one per target: ``top`` (the best class; the second ``top`` is the second best, and
            so on), ``truth`` (where the photo was taken), a class number, the S2 token of a class
            (``s2:8744`` if it has digits only), ``LAT,LON`` (the class whose cell contains the
            location), ``within:500km@LAT,LON`` and ``under:TOKEN`` (regions), or ``ONE-not-OTHER``
            (a contrast).
        explainer: with the classes; its spec has the number of targets.

    Raises:
        ValueError: no such class, location or word, or not as many words as the spec has targets.
    """
    if not words:
        return None
    if len(words) != explainer.spec.targets:
        raise ValueError(
            f"run: expected an explainer with {len(words)} targets for explain={list(words)}, got "
            f"targets={explainer.spec.targets}; make or export it with targets={len(words)}"
        )
    reader = _Reader(explainer)
    read = [reader.read(word) for word in words]
    ids = [x if isinstance(x, int) else NO_CLASS for x in read]
    if NO_CLASS not in ids:
        cells = reader.cells if TRUTH in ids else None
        ids = [TOP - ids[:i].count(TOP) if x == TOP else x for i, x in enumerate(ids)]
        return LocationTarget(tuple(words), torch.tensor(ids), cells=cells)
    if TOP in ids or TRUTH in ids:
        raise ValueError(
            f"explain: expected top and truth with classes only, got {list(words)}: the weights "
            "of a region or a contrast are the same for all images; explain it in a separate run"
        )
    weights = np.stack([reader.one_hot(x) if isinstance(x, int) else x for x in read])
    return LocationTarget(tuple(words), torch.tensor(ids), torch.from_numpy(weights)[None])


class _Reader:
    """Parses words, given the classes of an explainer."""

    def __init__(self, explainer: BatchExplainer) -> None:
        self._table = explainer.classes
        self._classes = explainer.num_classes
        self._cells: CellTable | None = None

    @property
    def cells(self) -> CellTable:
        if self._cells is None:
            if self._table is None:
                raise ValueError(
                    "explain: expected a model whose classes have locations, got one without a "
                    "class table; give one with --classes, or name class numbers"
                )
            self._cells = CellTable.from_classes(self._table)
        return self._cells

    def read(self, word: str) -> int | NDArray[np.float32]:
        """A class, ``TOP`` or ``TRUTH``; or the weights of a region or a contrast, [n]."""
        if NOT in word:
            return self._contrast(*word.split(NOT, 1))
        if word == "top":
            return TOP
        if word == "truth":
            return self._truth()
        if word.isdecimal():
            return self._class(int(word))
        try:
            return self._place(word)
        except ValueError as error:
            raise ValueError(f"explain {word!r}: {error}") from error

    def _truth(self) -> int:
        assert len(self.cells)  # raises if classes have no locations
        return TRUTH

    def _place(self, word: str) -> int | NDArray[np.float32]:
        if match := _PLACE.fullmatch(word):
            return self.cells.holding(float(match[1]), float(match[2]))
        if match := _WITHIN.fullmatch(word):
            if center := _PLACE.fullmatch(match[2]):
                return self.cells.within(float(match[1]), float(center[1]), float(center[2]))
        elif word.startswith("under:"):
            return self.cells.under(word.removeprefix("under:"))
        elif re.fullmatch("s2:.+|[0-9a-fA-F]{1,16}", word):
            return self.cells.of_token(word.removeprefix("s2:"))
        raise ValueError(f"expected {_FORMS}")

    def _class(self, index: int) -> int:
        if index >= self._classes:
            raise ValueError(
                f"explain: expected a class in 0..{self._classes - 1}, got {index}; write an S2 "
                f"token with these digits as s2:{index}"
            )
        return index

    def _contrast(self, one: str, other: str) -> NDArray[np.float32]:
        sides = [self.read(one), self.read(other)]
        if any(isinstance(side, int) and side < 0 for side in sides) or NOT in other:
            raise ValueError(
                f"explain: expected two classes, locations or regions in {one}{NOT}{other}; the "
                "top or true class differs from image to image"
            )
        plus, minus = (self.one_hot(x) if isinstance(x, int) else x for x in sides)
        weights = plus - minus
        if not (weights > 0).any() or not (weights < 0).any():
            raise ValueError(
                f"explain: expected two different classes or regions, none inside of the other, in "
                f"{one}{NOT}{other}"
            )
        return weights

    def one_hot(self, index: int) -> NDArray[np.float32]:
        """The weights of one class."""
        weights = np.zeros(self._classes, np.float32)
        weights[index] = 1
        return weights
