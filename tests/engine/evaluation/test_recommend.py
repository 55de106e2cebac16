"""``combicam recommend``: candidates are ranked, and the best one can be used."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from combicam import CamSpec, cli
from combicam.demo.planet import postcard
from combicam.engine.evaluation.methods import word
from combicam.engine.evaluation.recommend import CANDIDATES, rank

SPECS = {name: CANDIDATES[name] for name in ("combicam", "combicam+", "gradcam last")}


def test_names_can_be_told_apart_in_columns() -> None:
    assert len({word(name) for name in CANDIDATES}) == len(CANDIDATES)
    assert len(set(CANDIDATES.values())) == len(CANDIDATES)


def values(*means: float, spread: float = 0.01) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        name: mean + spread * rng.standard_normal(50)
        for name, mean in zip(SPECS, means, strict=True)
    }


def test_the_best_by_most_metrics_comes_first() -> None:
    columns = {"deletion": values(0.3, 0.1, 0.2), "insertion": values(0.5, 0.7, 0.6)}
    ranked = rank(SPECS, columns, dict.fromkeys(SPECS, 1.0))
    assert [one.name for one in ranked] == ["combicam+", "gradcam last", "combicam"]
    assert [one.rank for one in ranked] == [1, 2, 3]
    assert ranked[1].undecided == () and set(ranked[0].undecided) == set(columns)
    assert ranked[0].means["deletion"]["mean"] == pytest.approx(0.1, abs=0.01)


def test_a_difference_within_chance_does_not_decide() -> None:
    columns = {"deletion": values(0.2, 0.2, 0.4, spread=0.1), "insertion": values(0.5, 0.5, 0.5)}
    ranked = {one.name: one for one in rank(SPECS, columns, dict.fromkeys(SPECS, 1.0))}
    assert "deletion" not in ranked["gradcam last"].undecided
    for name in ("combicam", "combicam+"):
        assert "deletion" in ranked[name].undecided


def test_of_equal_ranks_the_cheaper_comes_first() -> None:
    columns = {"deletion": values(0.1, 0.2, 0.3), "insertion": values(0.5, 0.6, 0.4)}
    for costs in ((1.0, 2.0), (2.0, 1.0)):
        ranked = rank(SPECS, columns, dict(zip(SPECS, (*costs, 1.0), strict=True)))
        assert ranked[0].name == ("combicam" if costs[0] < costs[1] else "combicam+")


@pytest.mark.slow
def test_the_command_writes_a_spec_that_other_commands_take(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {**SPECS, "layercam stages": CANDIDATES["layercam stages"]}
    monkeypatch.setattr("combicam.engine.evaluation.recommend.CANDIDATES", few)
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(10):
        Image.fromarray(postcard(i, 7_000_000 + i).image).save(photos / f"{i}.png")
    out = tmp_path / "out"
    arguments = ["recommend", str(photos), "-m", "demo", "-o", str(out), "--no-progress"]
    cli.main([*arguments, "--steps", "3", "--mosaics", "1", "--grid-confidence", "0.3"])
    printed = capsys.readouterr().out
    assert "grid energy ↑" in printed and "edges" in printed and "--spec" in printed
    record = json.loads((out / "recommend.json").read_text())
    assert sorted(one["name"] for one in record["ranked"]) == sorted(few)
    assert min(one["cost"] for one in record["ranked"]) == 1
    best = CamSpec.read(out / "spec.json")
    assert best == few[record["ranked"][0]["name"]]
    assert not (out / "evaluation.partial.jsonl").exists()
    run = ["run", str(photos), "-o", str(tmp_path / "run"), "-m", "demo", "--no-progress"]
    cli.main([*run, "--spec", str(out / "spec.json"), "--targets", "2"])
    explained = json.loads((tmp_path / "run" / "run.json").read_text())["explainer"]["spec"]
    assert explained["method"] == best.method and explained["fuse"] == best.fuse
    assert explained["targets"] == 2
