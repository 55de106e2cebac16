"""Deletion and insertion: by hand, by symmetry, and beside torchcam."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import Tensor, nn
from torchcam.metrics import ClassificationMetric, DeletionInsertionMetric

from combicam.engine.evaluation.confidence import (
    average_drop,
    confidence_increase,
    shown_alone,
)
from combicam.engine.evaluation.deletion_insertion import area, pixel_ranks, removal_curves
from combicam.engine.evaluation.quantities import probability

FOUR = torch.tensor([[[0.4, 0.3], [0.2, 0.1]]])


def mass(images: Tensor) -> Tensor:
    """A network whose score is what is left of the first channel."""
    return images[:, 0].sum((1, 2))[:, None]


def left(logits: Tensor, owners: Tensor) -> Tensor:
    return logits[:, 0]


def hand_curves(steps: int) -> tuple[Tensor, Tensor, Tensor]:
    images = FOUR[:, None].expand(-1, 3, -1, -1)
    curves = removal_curves(mass, images, torch.zeros_like(images), FOUR, {"mass": left}, steps)
    return curves.fractions, curves.deletion["mass"], curves.insertion["mass"]


def test_four_pixels_by_hand() -> None:
    fractions, deletion, insertion = hand_curves(4)
    assert fractions.tolist() == [0, 0.25, 0.5, 0.75, 1]
    torch.testing.assert_close(deletion, torch.tensor([[1, 0.6, 0.3, 0.1, 0]]))
    torch.testing.assert_close(insertion, torch.tensor([[0, 0.4, 0.7, 0.9, 1]]))
    assert area(deletion, fractions).item() == pytest.approx(0.375)
    assert area(insertion, fractions).item() == pytest.approx(0.625)
    # The mean of five points, and two trapezoids, give 0.4 and 0.6.
    assert area(deletion, fractions, "mean").item() == pytest.approx(0.4)
    assert area(insertion, fractions, "mean").item() == pytest.approx(0.6)
    fractions, deletion, insertion = hand_curves(2)
    assert area(deletion, fractions).item() == pytest.approx(0.4)
    assert area(insertion, fractions).item() == pytest.approx(0.6)


def test_equal_values_are_taken_in_reading_order() -> None:
    maps = torch.tensor([[[1.0, 2.0], [1.0, 2.0]]])
    assert pixel_ranks(maps).tolist() == [[2, 0, 3, 1]]
    assert pixel_ranks(torch.zeros(1, 2, 2)).tolist() == [[0, 1, 2, 3]]


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 5))
    return layers.eval().requires_grad_(False)


@pytest.fixture
def batch(network: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    """Images, maps of different values, and the network's classes."""
    images = torch.randn(3, 3, 8, 8)
    return images, torch.rand(3, 8, 8), network(images).argmax(1)


def test_removal_is_torchcams(network: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> None:
    images, maps, targets = batch
    blank = torch.full_like(images, 0.3)

    class Extractor:
        model = network

        def __call__(self, *_: object, **__: object) -> list[Tensor]:
            return [maps]

        def fuse_cams(self, cams: list[Tensor]) -> Tensor:
            return cams[0]

        def _hooks_off(self) -> contextlib.AbstractContextManager[None]:
            return contextlib.nullcontext()

    softmax = nn.Softmax(-1)
    theirs = DeletionInsertionMetric(Extractor(), softmax, steps=16, baseline=blank)
    theirs.update(images)
    drops = ClassificationMetric(Extractor(), softmax)
    drops.update(images)

    quantities = {"probability": probability(targets)}
    curves = removal_curves(network, images, blank, maps, quantities, steps=16)
    deletion = area(curves.deletion["probability"], curves.fractions)
    insertion = area(curves.insertion["probability"], curves.fractions)
    assert deletion.mean().item() == pytest.approx(theirs.summary()["deletion_auc"], abs=1e-6)
    assert insertion.mean().item() == pytest.approx(theirs.summary()["insertion_auc"], abs=1e-6)

    alone = shown_alone(images, torch.zeros_like(images), maps)
    before, after = (probability(targets)(network(x), torch.arange(3)) for x in (images, alone))
    expected = drops.summary()
    assert average_drop(before, after).mean().item() == pytest.approx(
        expected["avg_drop"], abs=1e-6
    )
    assert confidence_increase(before, after).mean().item() == expected["conf_increase"]


def test_deleting_in_order_is_inserting_in_reverse(
    network: nn.Module, batch: tuple[Tensor, Tensor, Tensor]
) -> None:
    images, maps, targets = batch
    quantities = {"p": probability(targets)}
    blank = torch.zeros_like(images)
    forth = removal_curves(network, images, blank, maps, quantities, steps=7)
    back = removal_curves(network, images, blank, -maps, quantities, steps=7)
    torch.testing.assert_close(forth.deletion["p"], back.insertion["p"].flip(1))


def test_curves_depend_on_order_alone_and_not_on_batches(
    network: nn.Module, batch: tuple[Tensor, Tensor, Tensor]
) -> None:
    images, maps, targets = batch
    blank, whole = torch.zeros_like(images), {"p": probability(targets)}
    expected = removal_curves(network, images, blank, maps, whole, steps=5)
    scaled = removal_curves(network, images, blank, (3 * maps + 1).exp(), whole, 5, batch_size=1)
    torch.testing.assert_close(scaled.deletion["p"], expected.deletion["p"])
    one = removal_curves(
        network, images[1:2], blank[1:2], maps[1:2], {"p": probability(targets[1:2])}, steps=5
    )
    torch.testing.assert_close(one.insertion["p"], expected.insertion["p"][1:2])


def test_one_step_takes_everything_at_once(
    network: nn.Module, batch: tuple[Tensor, Tensor, Tensor]
) -> None:
    images, maps, targets = batch
    calls = []

    def counted(x: Tensor) -> Tensor:
        calls.append(len(x))
        return network(x)

    quantities = {"p": probability(targets)}
    curves = removal_curves(counted, images, torch.zeros_like(images), maps, quantities, steps=1)
    assert curves.deletion["p"].shape == (3, 2) and calls == [3, 3]


def test_what_does_not_fit_is_refused(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    images, maps, _ = batch
    with pytest.raises(ValueError, match=r"expected maps \(3, 8, 8\).*\(3, 4, 8\)"):
        removal_curves(mass, images, images, maps[:, :4], {"m": left})
    with pytest.raises(ValueError, match=r"steps in 1\.\.64.*65"):
        removal_curves(mass, images, images, maps, {"m": left}, steps=65)
    with pytest.raises(ValueError, match="simpson"):
        area(torch.zeros(1, 2), torch.tensor([0.0, 1.0]), "simpson")
