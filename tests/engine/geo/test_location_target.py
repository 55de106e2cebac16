"""What a run is asked for, word by word."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from combicam import CellTable, ClassTable
from combicam.demo.planet import CELLS
from combicam.engine.geo.location_target import read_location_target
from combicam.export.classes import s2
from combicam.export.spec import CamSpec

PLACES = ClassTable(
    names=tuple(cell.name for cell in CELLS),
    latitudes=tuple(cell.latitude for cell in CELLS),
    longitudes=tuple(cell.longitude for cell in CELLS),
)
CELL_IDS = s2.ancestors(s2.leaves(PLACES.latitudes, PLACES.longitudes), 5)
CELLS_OF_S2 = replace(PLACES, s2_tokens=s2.tokens(CELL_IDS))
PORTO, PERTH, CAIRNS = (PLACES.names.index(name) for name in ("Porto", "Perth", "Cairns"))


@dataclass
class Photo:
    true_lat: float | None
    true_lon: float | None
    id: str = "a.jpg"


def ask(*words: str, classes: ClassTable | None = CELLS_OF_S2) -> Any:
    explainer: Any = SimpleNamespace(
        classes=classes, spec=CamSpec(targets=len(words)), num_classes=len(CELLS)
    )
    return read_location_target(words, explainer)


def test_words_that_name_a_class() -> None:
    words = ("top", "top", "17", "41.1,-8.6", "-31.9, 115.9", f"s2:{CELLS_OF_S2.s2_tokens[4]}")
    target = ask(*words)
    assert target.kind == "classes" and not target.needs_truth
    assert target.classes.tolist() == [-1, -2, 17, PORTO, PERTH, 4]
    assert target.targets([], 3).tolist() == [target.classes.tolist()] * 3
    # Without S2 cells a place is the nearest class.
    assert ask("-33.9,151.2", classes=PLACES).classes.tolist() == [CAIRNS]
    letters = next(i for i, t in enumerate(CELLS_OF_S2.s2_tokens) if not t.isdecimal())
    assert ask(CELLS_OF_S2.s2_tokens[letters]).classes.tolist() == [letters]


def test_words_that_name_a_region() -> None:
    table = CellTable.from_classes(CELLS_OF_S2)
    parent = s2.tokens(s2.ancestors(CELL_IDS[[PORTO]], 1))[0]
    target = ask("within:2000km@41.1,-8.6", f"under:{parent}", "3")
    assert target.kind == "weights" and target.weights.shape == (1, 3, len(CELLS))
    weights = target.weights[0].numpy()
    assert (weights[0] == table.within(2000, 41.1, -8.6)).all() and 1 < weights[0].sum() < 36
    assert (weights[1] == table.under(parent)).all() and weights[1, PORTO] == 1
    assert weights[2].nonzero()[0].tolist() == [3]
    assert target.targets([], 5).shape == (5, 3, len(CELLS))


def test_words_that_name_a_contrast() -> None:
    target = ask(f"41.1,-8.6-not-{PERTH}", "within:2000km@41.1,-8.6-not--31.9,115.9")
    pair, region = target.weights[0].numpy()
    assert (pair[PORTO], pair[PERTH], np.abs(pair).sum()) == (1, -1, 2)
    assert region[PERTH] == -1 and region[PORTO] == 1 and (region > 0).sum() > 1
    assert (target.classes < -len(CELLS)).all()  # neither a class nor a rank


def test_the_truth_differs_from_photo_to_photo() -> None:
    target = ask("top", "truth")
    photos = [Photo(41.0, -8.5), Photo(-32.0, 116.0), Photo(-45.0, -120.0)]
    asked = target.targets(photos, 5)
    assert target.needs_truth and asked[:, 0].tolist() == [-1] * 5
    # The third is in no cell: the nearest class, over the ocean. The last two only fill the batch.
    nearest = CellTable.from_classes(PLACES).holding(-45.0, -120.0)
    assert asked[:, 1].tolist() == [PORTO, PERTH, nearest, nearest, nearest]
    asked = ask("truth", "top", "3", "top").targets(photos, 3)
    assert asked.tolist() == [[c, -1, 3, -2] for c in (PORTO, PERTH, nearest)]
    with pytest.raises(ValueError, match=r"got none for 'a\.jpg'; .* in the list, or with --truth"):
        target.targets([Photo(41.0, None)], 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("truth", "under:1"), "top and truth with classes only"),
        (("top", "1-not-2"), "top and truth with classes only"),
        (("top-not-2",), "differs from image to image"),
        (("1-not-2-not-3",), "expected two classes"),
        (("2-not-2",), "two different classes or regions"),
        (("within:9000km@41,-8-not-41.1,-8.6", "17-not-within:900km@41,-8"), "none inside of"),
        (("36",), r"a class in 0\.\.35, got 36; write an S2 token with these digits as s2:36"),
        (("lisbon",), r"explain 'lisbon': expected top, truth, a class number"),
        (("within:500@38.7,-9.1",), "expected top, truth"),
        (("within:500km@Lisbon",), "expected top, truth"),
        (("within:0km@38.7,-9.1",), "km > 0"),
        (("within:1km@0,0",), "got none; the nearest is class 18"),
        (("91,0",), "latitude in"),
        (("under:zz",), "got 'zz', which no S2 cell has"),
        (("89c25",), r"explain '89c25': of_token: .*under:89c25"),
    ],
)
def test_words_that_are_refused(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ask(*words)


def test_classes_without_places_have_numbers_alone() -> None:
    assert ask("top", "5", classes=None).classes.tolist() == [-1, 5]
    for word in ("truth", "1,2", "under:1"):
        with pytest.raises(ValueError, match="--classes"):
            ask(word, classes=None)
        with pytest.raises(ValueError, match="without locations"):
            ask(word, classes=ClassTable(names=PLACES.names))
    with pytest.raises(ValueError, match="S2 tokens, got only locations"):
        ask("under:1", classes=PLACES)
    explainer: Any = SimpleNamespace(classes=None, spec=CamSpec(), num_classes=36)
    assert read_location_target((), explainer) is None
    with pytest.raises(ValueError, match=r"an explainer with 2 targets.*got targets=1"):
        read_location_target(("top", "5"), explainer)
