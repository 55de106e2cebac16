"""Read which targets a run explains of every photo, from words such as ``truth``."""

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
TRUTH = -(2**62)  # no rank
NO_CLASS = TRUTH - 1
NOT = "-not-"
_NUMBER = r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)"
_PLACE = re.compile(rf"({_NUMBER}),\s*({_NUMBER})")
_WITHIN = re.compile(rf"within:({_NUMBER})\s*km@(.+)")
_FORMS = (
    "top, truth, a class number, s2:TOKEN or TOKEN, LAT,LON, within:KMkm@LAT,LON, under:TOKEN, or "
    "two of these but top and truth as ONE-not-OTHER"
)


class Located(Protocol):
    """A photo that may know where it was taken: degrees, or None."""

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
    """K targets of every photo.

    Attributes:
        words: what was asked.
        classes: int64 [K], a class; -k for the k-th best; ``TRUTH``; or ``NO_CLASS`` for a region
            or a contrast.
        weights: float32 [1,K,n] where one of them is a region or a contrast; else None.
        cells: of the classes; only where the truth is asked for.
    """

    words: tuple[str, ...]
    classes: Tensor
    weights: Tensor | None = None
    cells: CellTable | None = None

    @property
    def kind(self) -> str:
        """How explainers are asked: ``classes`` or ``weights``."""
        return "classes" if self.weights is None else "weights"

    @property
    def needs_truth(self) -> bool:
        """Whether photos must know where they were taken."""
        return self.cells is not None

    def targets(self, photos: Sequence[Located], batch: int) -> Tensor:
        """What the explainer is asked.

        Args:
            photos: of a batch, in order.
            batch: B, which may be more: the last photo is repeated.

        Returns:
            On the CPU: int64 [B,K], or float32 [B,K,n], a view of one photo's.

        Raises:
            ValueError: the truth is asked for, and a photo does not know it.
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
    """The classes of where photos were taken: whose cell holds the place, else the nearest.

    Raises:
        ValueError: a photo does not know it.
    """
    places = [(photo.true_lat, photo.true_lon) for photo in located(photos)]
    return cells.classes_at(*zip(*places, strict=True))


def located(photos: Iterable[Photo], needed: bool = True) -> Iterator[Photo]:
    """The same photos, one by one.

    Raises:
        ValueError: it is needed where they were taken, and one does not know it.
    """
    for photo in photos:
        if needed and (photo.true_lat is None or photo.true_lon is None):
            raise ValueError(
                f"explain truth: expected every input to know where it was taken, got none for "
                f"{photo.id!r}; give its latitude and longitude in the list, or with --truth FILE"
            )
        yield photo


def read_location_target(words: Sequence[str], explainer: BatchExplainer) -> LocationTarget | None:
    """Understand what a run is to explain; None where nothing is asked, for the best classes.

    Args:
        words: one per target: ``top`` (the best class, the next time the second best, and so on),
            ``truth`` (where the photo was taken), a
            class number, the S2 token of a class (``s2:8744`` where it has digits alone),
            ``LAT,LON`` (the class whose cell holds the place), ``within:500km@LAT,LON`` and
            ``under:TOKEN`` (regions), or ``ONE-not-OTHER`` (a contrast).
        explainer: whose classes they are, and whose spec says how many targets it has.

    Raises:
        ValueError: no such class, place or word, or another number of targets than the spec's.
    """
    if not words:
        return None
    if len(words) != explainer.spec.targets:
        raise ValueError(
            f"run: expected an explainer of {len(words)} targets, for explain={list(words)}, got "
            f"targets={explainer.spec.targets}; make it, or export it, with targets={len(words)}"
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
            f"explain: expected top and truth beside classes alone, got {list(words)}: the weights "
            "of a region or a contrast are the same for all photos; ask for it in a run of its own"
        )
    weights = np.stack([reader.one_hot(x) if isinstance(x, int) else x for x in read])
    return LocationTarget(tuple(words), torch.tensor(ids), torch.from_numpy(weights)[None])


class _Reader:
    """Reads words with the classes of an explainer."""

    def __init__(self, explainer: BatchExplainer) -> None:
        self._table = explainer.classes
        self._classes = explainer.num_classes
        self._cells: CellTable | None = None

    @property
    def cells(self) -> CellTable:
        if self._cells is None:
            if self._table is None:
                raise ValueError(
                    "explain: expected a model that knows the places of its classes, got one "
                    "without a table; give one with --classes, or name class numbers"
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
        assert len(self.cells)  # refused where classes have no places
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
                f"explain: expected a class in 0..{self._classes - 1}, got {index}; the S2 token "
                f"of these digits is s2:{index}"
            )
        return index

    def _contrast(self, one: str, other: str) -> NDArray[np.float32]:
        sides = [self.read(one), self.read(other)]
        if any(isinstance(side, int) and side < 0 for side in sides) or NOT in other:
            raise ValueError(
                f"explain: expected two classes, places or regions in {one}{NOT}{other}; which "
                "class is top or true differs from photo to photo"
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
