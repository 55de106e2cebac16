"""The pipeline's benchmark in small: every row is there and adds up."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.constant_explainer import ConstantExplainer
from benchmarks.growth import growth_rows, tiny
from benchmarks.pipeline import PipelineConfig, pipeline
from benchmarks.pipeline_page import pipeline_table
from combicam import Explainer


def test_stages_whole_and_stores() -> None:
    config = PipelineConfig(
        model="benchmarks.growth:tiny", photos=9, side=64, batch=4, growth=0, rounds=2
    )
    rows = {row.name: row for row in pipeline(config, lambda line: None)}
    stages = ("read", "read and decode", "batch", "explain", "encode and commit", "whole run")
    for name in stages:
        assert len(rows[name].seconds) == 2 and (rows[name].images_per_s or 0) > 0
        assert rows[name].params["images"] == 9
    parts = [rows[n].images_per_s or 0.0 for n in stages if n not in ("read", "whole run")]
    assert rows["bound"].images_per_s == pytest.approx(1 / sum(1 / rate for rate in parts))
    sizes = {s: rows[f"store {s}"].params["bytes_per_image"] for s in ("full", "grid", "layers")}
    assert 0 < sizes["grid"] < sizes["full"]
    assert "| whole run / bound |" in pipeline_table([*rows.values()])


def test_one_explanation_for_all_images() -> None:
    images = torch.arange(5 * 32 * 32 * 3).reshape(5, 32, 32, 3).to(torch.uint8)
    explainer = Explainer(tiny(), targets=2, keep_layers=True)
    first, constant = explainer(images[:1]), ConstantExplainer(explainer)
    for count in (3, 5):
        found = constant(images[:count])
        assert found.heatmaps.shape == (count, 2, 32, 32) and found.logits.shape == (count, 4)
        assert (found.heatmaps == first.heatmaps).all() and (found.targets == first.targets).all()
        assert {m.shape[0] for m in found.layer_maps.values()} == {count}
    assert constant.fingerprint() != explainer.fingerprint()


def test_stages_without_a_network() -> None:
    config = PipelineConfig(
        "benchmarks.growth:tiny", "none", photos=5, side=64, batch=4, growth=0, rounds=1
    )
    rows = {row.name: row for row in pipeline(config, lambda line: None)}
    assert rows["whole run"].params["explainer"] == "none"
    assert (rows["whole run"].images_per_s or 0) > 0 and "store full" not in rows


def test_growth(tmp_path: Path) -> None:
    (row,) = growth_rows(tmp_path, 1500, 1, lambda line: None)
    assert row.name == "up to 1000 images" and row.params["images"] == 1500
    assert 100 < row.params["rss_mib"] <= row.params["peak_rss_mib"]
    assert row.params["restart_s"] < row.params["wall_s"]
