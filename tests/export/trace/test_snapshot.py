"""The caller's model stays as it was; broken ones are refused."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

from combicam import ModelError, TraceError
from combicam.export.trace.snapshot import check_finite, snapshot


def test_later_training_does_not_reach_the_copy() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)).train()
    clone = snapshot(model)
    assert not clone.training and model.training
    assert model[2].inplace and not clone[2].inplace  # type: ignore[index]
    for ours, theirs in zip(clone.parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs) and ours.data_ptr() != theirs.data_ptr()
        assert not ours.requires_grad and theirs.requires_grad


def test_parameters_made_in_inference_mode() -> None:
    with torch.inference_mode():
        model = nn.Conv2d(3, 4, 3)
    assert not any(p.is_inference() for p in snapshot(model).parameters())


def test_refusals() -> None:
    model = nn.Conv2d(3, 4, 3)
    model.kept = threading.Lock()  # type: ignore[assignment]
    with pytest.raises(
        TraceError, match=r"cannot be copied .* attribute .kept. of the model is a lock"
    ):
        snapshot(model)
    model = nn.Conv2d(3, 4, 3)
    model.weight.data[0, 0, 0, 0] = torch.nan
    with pytest.raises(ModelError, match="weight"):
        check_finite(model)
