"""Golden outputs: the network's, and the file gives them in every batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from triton_stand_in import session

from combicam import Explainer, LoadedModel, ServedModel
from combicam.engine.serving import client

Arrays = dict[str, np.ndarray[Any, Any]]


def golden(model: Path) -> tuple[Arrays, Arrays]:
    return dict(np.load(model / "golden/input.npz")), dict(np.load(model / "golden/output.npz"))


@pytest.mark.parametrize("batch", [1, 3, 5])  # 5: max_batch_size of the planet
def test_golden_parity(model: ServedModel, batch: int) -> None:
    """Of every image, whatever the batch it comes in."""
    feed, expected = golden(model.path)
    assert list(expected) == [o.name for o in session(model.path).get_outputs()]
    rows = np.arange(batch) % len(feed["images"])
    found = session(model.path).run(list(expected), {n: a[rows] for n, a in feed.items()})
    errors = client.golden_errors(
        {n: a[rows] for n, a in expected.items()}, dict(zip(expected, found, strict=True))
    )
    assert max(errors.values()) < 1e-4, errors


def test_golden_outputs_are_the_networks(planet: ServedModel, demo_model: LoadedModel) -> None:
    feed, expected = golden(planet.path)
    assert feed["targets"][0].tolist() == [-1, -2] and (feed["targets"][1:] >= 0).all()
    explainer = Explainer(demo_model, layers="stages", targets=2)
    found = explainer(torch.from_numpy(feed["images"]), feed["targets"])
    torch.testing.assert_close(
        torch.from_numpy(expected["heatmaps"]), found.heatmaps, atol=1e-4, rtol=0
    )
    assert np.array_equal(expected["classes"], found.targets.numpy())
    assert planet.verification is not None and planet.verification.max_heatmap_error < 1e-4


def test_golden_errors_see_what_is_wrong(planet: ServedModel) -> None:
    _, expected = golden(planet.path)
    assert not any(client.golden_errors(expected, expected).values())
    for name in ("logits", "scores", "heatmaps", "ranges"):
        off = {**expected, name: expected[name] + 0.01 * np.abs(expected[name]).max()}
        errors = client.golden_errors(expected, off)
        assert errors.pop(name) == pytest.approx(0.01, rel=1e-3) and not any(errors.values())
        holes = expected[name].copy()
        holes[-1] = np.nan
        assert client.golden_errors(expected, {**expected, name: holes})[name] == np.inf
    short = {**expected, "scores": expected["scores"][:1]}
    assert client.golden_errors(expected, short)["scores"] == np.inf
    other = expected["classes"].copy()
    other[0, 0] = expected["logits"][0].argmin()
    assert client.golden_errors(expected, {**expected, "classes": other})["classes"] > 0.1
