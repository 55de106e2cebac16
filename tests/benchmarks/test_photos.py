"""The photographs' halves, and the tables of what was measured on them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.claim_page import photo_table
from benchmarks.designs import FUSIONS, DesignsConfig, designs
from benchmarks.photo_claim import COMBI, LAST, PhotoClaimConfig, photo_claim
from benchmarks.photos import half_of
from combicam import CamSpec
from combicam.demo.photographs import write_photographs


def test_halves_have_nothing_in_common_and_depend_on_names_alone(tmp_path: Path) -> None:
    for i in range(40):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / f"{i}.png")
    tune, report = half_of(tmp_path, "tune"), half_of(tmp_path, "report")
    assert len(tune) + len(report) == 40 and not set(tune) & set(report)
    assert min(len(tune), len(report)) > 8
    report[3].unlink()
    assert half_of(tmp_path, "tune") == tune
    assert half_of(tmp_path, "report") == report[:3] + report[4:]


def test_the_table_marks_what_differs_from_combicam() -> None:
    def found(mean: float, minus: tuple[float, float, float]) -> dict[str, object]:
        paired = dict(zip(("mean", "low", "high"), minus, strict=True))
        return {"mean": mean, "low": mean, "high": mean, "minus_combicam": paired}

    better, worse = found(0.9, (0.3, 0.2, 0.4)), found(0.9, (-0.3, -0.4, -0.2))
    metrics = ("grid_energy", "grid_maximum", "deletion", "insertion", "sensitivity")
    record = {
        "networks": {
            "lite0": {
                "images": 7,
                "mosaics": 3,
                "explain_s": {"a": 0.2, "b": 0.1},
                "maps": {"a": dict.fromkeys(metrics, better), "b": dict.fromkeys(metrics, worse)},
            }
        }
    }
    lines = photo_table(record).splitlines()
    assert "7 photographs, 3 mosaics" in lines[0]
    a, b = (line.split(" | ") for line in lines[-2:])
    assert a[1].startswith("**0.900**") and a[3].startswith("*0.900*") and a[-1] == "2.0 |"
    assert b[1].startswith("*0.900*") and b[3].startswith("**0.900**") and b[-1] == "1.0 |"


@pytest.mark.slow
def test_both_commands_over_some_photographs(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    write_photographs(photos, tmp_path / "photos.csv")
    for path in list(photos.iterdir()):  # enough for both halves
        with Image.open(path) as image:
            for turn in range(1, 4):
                image.rotate(90 * turn).save(path.with_stem(f"{path.stem}-{turn}"))
    said: list[str] = []
    config = PhotoClaimConfig(photos, ("lite0",), images=3, steps=3)
    record = photo_claim(config, said.append, {COMBI: CamSpec(), LAST: CamSpec("last")})
    json.dumps(record, allow_nan=False)
    maps = record["networks"]["lite0"]["maps"]
    assert list(maps) == [COMBI, LAST, "edges", "random places"] and len(said) == 1
    assert maps[LAST]["deletion"]["minus_last"]["mean"] == 0
    search = DesignsConfig(photos, ("lite0",), 2, 1, postcards=36, steps=2, methods=("layercam",))
    found = designs(search, said.append)["worlds"]
    assert set(found) == {"postcards", "lite0"}
    assert set(found["lite0"]) == {"edges"} | {
        f"layercam {rule} {fusion}"
        for rule in ("last", "stages", "blocks")
        for fusion in FUSIONS
        if (fusion in ("sum", "squared") if rule == "last" else fusion != "squared")
    }
