"""Cells against S2's own numbers, the dateline, the poles, and every distance one by one."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from combicam import CellTable, ClassTable
from combicam.export.classes import s2
from combicam.export.classes.places import EARTH_RADIUS_KM

# The six faces: tokens are 2 face + 1, centres are the axes of the cube.
FACES = ("1", "3", "5", "7", "9", "b")
# Places and their cells as the GeoEstimation project published them.
CITIES = {
    "47e66e21": (48.8576, 2.3411),  # Paris
    "12a4a27": (41.3706, 2.1533),  # Barcelona
    "89c2588c": (40.7789, -73.9747),  # Manhattan
    "6d39": (-41.3076, 174.6502),  # Wellington
    "009b": (-22.9787, -43.2445),  # Rio de Janeiro
    "8744": (39.2816, -107.9434),  # Colorado; digits alone
}


def table(tokens: tuple[str, ...]) -> CellTable:
    ids = np.array([s2.cell_id(token) for token in tokens], np.uint64)
    return CellTable(*s2.centers(ids), ids)


def haversine_km(lat: float, lon: float, lats: NDArray, lons: NDArray) -> NDArray:
    p, q = np.radians(lat), np.radians(lats)
    half = np.sin((q - p) / 2) ** 2
    half += np.cos(p) * np.cos(q) * np.sin(np.radians(lons - lon) / 2) ** 2
    return 2 * EARTH_RADIUS_KM * np.arcsin(np.sqrt(half.clip(0, 1)))


def test_faces_are_where_the_axes_are() -> None:
    faces = table(FACES)
    assert faces.levels.tolist() == [0] * 6 and faces.tokens == FACES
    np.testing.assert_allclose(faces.latitudes, [0, 0, 90, 0, 0, -90], atol=1e-12)
    assert abs(faces.longitudes[3]) == 180  # the dateline runs through the middle of a face
    np.testing.assert_allclose(faces.longitudes[[0, 1, 4]], [0, 90, -90], atol=1e-12)


def test_children_by_hand() -> None:
    # Face 0 is 000, a child adds two bits and ends with a 1: 000 00 1 00 is 0x04, and so on.
    children = table(("04", "0c", "14", "1c"))
    assert children.levels.tolist() == [1] * 4
    assert children.ancestors_in(table(FACES)).tolist() == [0] * 4
    assert s2.descendants(s2.cell_id("1")) == (1, 0x1FFFFFFFFFFFFFFF)
    # The four meet at (0, 0), and each holds its quarter of the face.
    quarters = {(lat > 0, lon > 0) for lat, lon in zip(*s2.centers(children.ids), strict=True)}
    assert len(quarters) == 4


def test_published_cells_hold_their_cities() -> None:
    cells = table(tuple(CITIES))
    assert cells.tokens == tuple(CITIES)  # digits and zeros at the start survive
    for i, place in enumerate(CITIES.values()):
        assert cells.holding(*place) == i
    # The last 1 of 47e66e21 is its 32nd bit; 3 for the face, 2 per level, 1: level 14.
    assert cells.levels.tolist() == [14, 12, 13, 6, 6, 5]


@pytest.mark.parametrize("lat", [-16.5, 0.0, 71.2])
def test_both_sides_of_the_dateline(lat: float) -> None:
    ids = np.unique(s2.ancestors(s2.leaves([lat] * 2, [-179.9, 179.9]), 8))
    cells = CellTable(*s2.centers(ids), ids)
    assert cells.holding(lat, 180.0) == cells.holding(lat, -180.0)
    east, west = cells.classes_at([lat, lat], [-179.9, 179.9])
    assert len(cells) == 2 and east != west  # the meridian is an edge
    # Either centre is near the other, although their longitudes differ by 360 degrees.
    assert cells.within(120, lat, 179.99).tolist() == [1, 1]


def test_poles_have_every_longitude() -> None:
    faces = table(FACES)
    for lon in (-180.0, -77.0, 0.0, 123.0):
        assert faces.holding(90, lon) == 2 and faces.holding(-90, lon) == 5
        assert (s2.leaves([90, -90], [lon] * 2) == s2.leaves([90, -90], [0.0] * 2)).all()
    near = CellTable([89.9, 0.0], [10.0, -170.0])
    assert near.holding(89.9, -170) == 0  # 22 km over the pole, not 80 degrees along the meridian
    assert near.within(23, 89.9, -170).tolist() == [1, 0]


@settings(max_examples=60)
@given(
    lat=st.floats(-90, 90), lon=st.floats(-180, 180),
    km=st.one_of(st.floats(0.5, 30_000), st.just(25.0)),
)  # fmt: skip
def test_regions_are_what_single_distances_say(lat: float, lon: float, km: float) -> None:
    rng = np.random.default_rng(3)
    lats, lons = np.degrees(np.arcsin(rng.uniform(-1, 1, 400))), rng.uniform(-180, 180, 400)
    lats[:3], lons[:3] = (lat, -lat, lat), (lon, lon - 180 if lon > 0 else lon + 180, lon)
    cells = CellTable(lats, lons)
    distances = haversine_km(lat, lon, lats, lons)
    clear = np.abs(distances - km) > 1e-3  # the haversine itself is worse near the antipode
    assert (cells.within(km, lat, lon)[clear] == (distances <= km)[clear]).all()
    assert distances[cells.holding(lat, lon)] <= distances.min() + 1e-3


def test_hierarchy_of_three_tables() -> None:
    rng = np.random.default_rng(5)
    leaves = s2.leaves(rng.uniform(-80, 80, 300), rng.uniform(-180, 180, 300))
    coarse, middle, fine = (
        CellTable(*s2.centers(ids), ids)
        for ids in (np.unique(s2.ancestors(leaves, level)) for level in (3, 6, 9))
    )
    to_middle, to_coarse = fine.ancestors_in(middle), fine.ancestors_in(coarse)
    assert (middle.ancestors_in(coarse)[to_middle] == to_coarse).all()
    for child, parent in zip(fine.ids.tolist(), middle.ids[to_middle].tolist(), strict=True):
        first, last = s2.descendants(parent)
        assert first <= child <= last
    assert (fine.ancestors_in(fine) == np.arange(len(fine))).all()
    assert (coarse.ancestors_in(fine) == -1).all()
    for index in (0, len(middle) - 1):
        inside = fine.under(middle.tokens[index]) == 1
        assert (inside == (to_middle == index)).all()


def test_the_smallest_of_nested_cells_holds_a_place() -> None:
    nested = table(("1", "0c", "04"))
    lat, lon = s2.centers(nested.ids[2:])
    assert nested.holding(lat[0], lon[0]) == 2
    assert nested.holding(30.0, 30.0) in (0, 1)
    assert nested.under("1").tolist() == [1, 1, 1] and nested.of_token("0c") == 1


def test_places_in_no_cell() -> None:
    cells = table(("89c2588c", "47e66e21"))
    with pytest.raises(ValueError, match=r"which is in none; the nearest is class 1 \(47e66e21"):
        cells.holding(52.5, 13.4)
    assert cells.classes_at([52.5, 40.7789], [13.4, -73.9747]).tolist() == [1, 0]
    with pytest.raises(ValueError, match=r"within 100 km of 52\.5,13\.4, got none; the nearest is"):
        cells.within(100, 52.5, 13.4)
    with pytest.raises(ValueError, match="got 0d, which has none"):
        cells.under("0d")
    with pytest.raises(ValueError, match="under:89c25"):
        cells.of_token("89c25")


def test_a_table_becomes_classes_and_comes_back() -> None:
    cells = dataclasses.replace(table(tuple(CITIES)), names=tuple("abcdef"))
    classes = cells.to_classes()
    back = CellTable.from_classes(ClassTable.from_dict(classes.to_dict()))
    assert back.to_classes() == classes and classes.s2_tokens == tuple(CITIES)
    assert not cells.ids.flags.writeable and not back.latitudes.flags.writeable


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (([], []), "at least one cell"),
        (([1.0], [2.0, 3.0]), "columns of 1 cells"),
        (([1.0, 2.0], [2.0, 3.0], [1]), "columns of 2 cells"),
        (([91.0, 0.0], [0.0, 0.0]), r"got \(91.0, 0.0\) for number 0"),
        (([0.0, np.nan], [0.0, 0.0]), "for number 1"),
        (([0.0], [0.0], [2]), "got 0x2 for class 0"),  # its 1 stands between two levels
        (([0.0], [0.0], [7 << 61]), "for class 0"),  # there are six faces
        (([0.0, 1.0], [0.0, 1.0], [1, 1]), "once, got 0000000000000001 for the classes 0 and 1"),
    ],
)
def test_tables_that_are_none(columns: tuple[list[float], ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        CellTable(*map(np.array, columns))


def test_places_alone_have_no_cells() -> None:
    alone = CellTable(np.array([1.0]), np.array([2.0]))
    for ask in (lambda: alone.under("1"), lambda: alone.of_token("1"), lambda: alone.ancestors_in(
        alone
    )):  # fmt: skip
        with pytest.raises(ValueError, match="S2 tokens, got only locations"):
            ask()
    with pytest.raises(ValueError, match="without locations"):
        CellTable.from_classes(ClassTable(names=("a",)))
    with pytest.raises(ValueError, match="class 1: expected an S2 token, got '2'"):
        CellTable.from_classes(ClassTable((), (1.0, 2.0), (1.0, 2.0), ("1", "2")))
    for lat, lon in ((91, 0), (0, 181), (np.nan, 0)):
        with pytest.raises(ValueError, match="latitude in"):
            alone.holding(lat, lon)
