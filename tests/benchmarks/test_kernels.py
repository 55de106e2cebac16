"""The kernels' benchmark: its cases are the networks' layers, wrong contenders are failures."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import torchvision

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.harness import measure
from benchmarks.heads import CASES, read_bytes
from benchmarks.kernels import COPY, head_contenders, head_table
from combicam.export.trace.layers import select_layers
from combicam.export.trace.probe import probe


@pytest.mark.parametrize(
    ("name", "layers"), [("resnet50", "stages"), ("efficientnet_b4", "blocks")]
)
def test_cases_are_the_layers_of_the_networks(name: str, layers: str) -> None:
    model = torchvision.models.get_model(name, weights=None).eval()
    size = CASES[name].size
    found = select_layers(model, probe(model, size), layers)
    assert [(i.channels, i.height, i.width) for i in found] == list(CASES[name].layers)


def test_bytes_of_resnet50() -> None:
    # 1.505 M elements per image in activations and in gradients each, 2 bytes each.
    assert read_bytes(CASES["resnet50"], 256, torch.bfloat16) == 256 * 4 * 1_505_280


@pytest.mark.slow
def test_one_round_on_the_cpu() -> None:
    device = torch.device("cpu")
    params = {"bytes": 1, "batches_per_call": 64}
    entrants = [
        c
        for c in head_contenders(CASES["tiny"], 1, torch.float32, device)
        if "compiled" not in c.name
    ]
    results = measure(entrants, params, 1, lambda line: None)
    assert [r.error for r in results] == [None] * len(results)
    assert {COPY, "head: reference", "head: pytorch-grad-cam"} <= {r.name for r in results}
    assert "| head: reference |" in head_table(results)
