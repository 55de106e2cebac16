"""The claim's statistics and page, on numbers made up; the command itself under the slow marker."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.claim import COMBI, ClaimConfig, claim, summaries
from benchmarks.claim_page import claim_table, draw


def columns() -> dict[str, dict[str, np.ndarray]]:
    """Twenty postcards: one map is always a little better, one always worse, one random."""
    rng = np.random.default_rng(0)
    base = rng.random(20)
    noise = rng.normal(0, 1, 20)
    half = np.where(np.arange(20) < 10, base - 0.1, np.nan)
    return {
        COMBI: {"pointing": base, "deletion": base},
        "better": {"pointing": base + 0.1, "deletion": half},
        "worse": {"pointing": base - 0.1, "deletion": half + 0.2},
        "edges": {"pointing": base + noise - noise.mean(), "deletion": base},
        "random places": {"pointing": base, "deletion": base},
        "Combi-CAM of another postcard": {"pointing": base, "deletion": base},
        "only one": {"pointing": base},
    }


@pytest.fixture
def record() -> dict[str, object]:
    return {
        "settings": {"seed": 7_000_000},
        "metrics": {"steps": 3, "baseline": "blur", "rule": "trapezoid", "tolerance": 8.0},
        "network": {"accuracy": 0.95, "probability": 0.9},
        "evidence": 0.02,
        "images": 20,
        "maps": summaries(columns()),
    }


def test_differences_are_paired(record: dict[str, dict[str, dict[str, dict[str, dict]]]]) -> None:
    better = record["maps"]["better"]["pointing"]["minus_combicam"]
    assert [better[key] for key in ("mean", "low", "high")] == pytest.approx([0.1] * 3)
    # On ten postcards alone; the reference is taken on the same ten.
    deletion = record["maps"]["better"]["deletion"]
    assert (deletion["images"], deletion["minus_combicam"]["images"]) == (10, 10)
    assert deletion["minus_combicam"]["mean"] == pytest.approx(-0.1)


def test_marks_follow_the_direction_of_the_metric(record: dict[str, object]) -> None:
    lines = {line.split(" | ")[0][2:]: line for line in claim_table(record).splitlines()[2:]}
    pointing, deletion = (lines["better"].split(" | ")[i] for i in (1, 4))
    assert pointing.startswith("**") and deletion.startswith("**")  # less deletion is better
    pointing, deletion = (lines["worse"].split(" | ")[i] for i in (1, 4))
    assert pointing.startswith("*0") and deletion.startswith("*0")
    assert not lines["edges"].split(" | ")[1].startswith("*")
    assert "7,000,000" in claim_table(record)


def test_the_plot_is_a_picture(record: dict[str, object], tmp_path: Path) -> None:
    draw(record, tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as picture:
        shades = np.asarray(picture.convert("L"))
    assert shades.shape[1] > 1000 and (shades < 128).mean() > 0.001  # something is drawn


@pytest.mark.slow
def test_the_command_over_some_postcards(tmp_path: Path) -> None:
    said: list[str] = []
    config = ClaimConfig(6, curves=3, scorecam=3, layer_curves=3, steps=3, batch=3)
    record = claim(config, said.append)
    json.dumps(record, allow_nan=False)
    assert record["images"] == 6 and len(said) == 2
    maps = record["maps"]
    assert maps[COMBI]["energy"]["images"] == 6 and maps[COMBI]["deletion"]["images"] == 3
    assert maps["Score-CAM, last block"]["pointing"]["images"] == 3
    # With a linear head behind average pooling the two are one map.
    for metric, found in maps["HiResCAM, last block"].items():
        assert found["mean"] == pytest.approx(
            maps["Grad-CAM, last block"][metric]["mean"], abs=0.01
        )
    assert maps["only stage4.1"]["energy"] == maps["Grad-CAM, last block"]["energy"]
    assert "only stage1.0" in claim_table(record)
