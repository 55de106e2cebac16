"""Regions of the Earth explained: the logarithm of the summed probability of their classes."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from combicam import CellTable, Explainer, LoadedModel, contrast

LAYER = "stage4.1"


@pytest.fixture(scope="module")
def explainer(demo_model: LoadedModel) -> Explainer:
    return Explainer(demo_model, layers=[LAYER], method="elementwise", keep_layers=True)


@pytest.fixture(scope="module")
def cells(explainer: Explainer) -> CellTable:
    assert explainer.classes is not None
    return CellTable.from_classes(explainer.classes)


@pytest.fixture(scope="module")
def images(postcards: Callable[[int, int], Tensor]) -> Tensor:
    return postcards(3, 4_000_000)


def expected_map(
    model: LoadedModel, image: Tensor, y: Callable[[Tensor], Tensor]
) -> tuple[Tensor, float]:
    """Σ_c relu(G A) of the last block by autograd in float64, and what ``y`` is."""
    network = copy.deepcopy(model.module).double()
    acts = network.features(model.preprocess.normalize(image[None]).double())
    acts = acts.detach().requires_grad_()
    value = y(network.head(network.pool(acts).flatten(1))[0])
    (grad,) = torch.autograd.grad(value, acts)
    return (acts * grad).detach().clamp(min=0).sum(1)[0], float(value.detach())


def test_a_region_is_the_log_of_its_summed_probability(
    demo_model: LoadedModel, explainer: Explainer, cells: CellTable, images: Tensor
) -> None:
    europe = cells.within(2500, 50, 10)
    inside = torch.from_numpy(europe) == 1
    assert 3 < inside.sum() < 12
    found = explainer(images, europe)
    for i in range(len(images)):
        expected, value = expected_map(
            demo_model, images[i], lambda z: z.log_softmax(0)[inside].logsumexp(0)
        )
        assert expected.max() > 0
        error = (found.layer_maps[LAYER][i, 0] - expected).abs().max()
        assert error < 1e-4 * expected.max()
        assert found.scores[i, 0].item() == pytest.approx(np.exp(value), rel=1e-3)
    assert (found.targets == -1).all()


def test_a_place_is_its_class_and_many_places_are_many(
    explainer: Explainer, cells: CellTable, images: Tensor
) -> None:
    porto = cells.holding(41.2, -8.5)
    one = explainer(images, porto)
    assert one.targets.tolist() == [[porto]] * 3 and cells.names[porto] == "Porto"
    truth = cells.classes_at([41.2, -31.0, 64.0], [-8.5, 116.0, -22.0])
    many = explainer(images, truth)
    assert [cells.names[i] for i in many.targets[:, 0]] == ["Porto", "Perth", "Reykjavik"]
    torch.testing.assert_close(many.heatmaps[0], one.heatmaps[0])
    # A region of one class is that class, but for the number.
    region = explainer(images, cells.within(100, 41.1, -8.6))
    torch.testing.assert_close(region.scores, one.scores)
    torch.testing.assert_close(region.heatmaps, one.heatmaps, atol=1e-4, rtol=0)


def test_one_place_against_another(
    demo_model: LoadedModel, explainer: Explainer, cells: CellTable, images: Tensor
) -> None:
    porto, perth = cells.holding(41.2, -8.5), cells.holding(-31.0, 116.0)
    pair = explainer(images, contrast(porto, perth))
    weights = explainer(images, cells.within(100, 41.1, -8.6) - cells.within(100, -31.9, 115.9))
    torch.testing.assert_close(pair.heatmaps, weights.heatmaps)
    iberia, asia = cells.within(1500, 41, -8), cells.within(4000, 20, 100)
    regions = explainer(images, iberia - asia)
    expected, _ = expected_map(
        demo_model,
        images[0],
        lambda z: z[iberia == 1].logsumexp(0) - z[asia == 1].logsumexp(0),
    )
    assert expected.max() > 0
    error = (regions.layer_maps[LAYER][0, 0] - expected).abs().max()
    assert error < 1e-4 * expected.max()


def test_weights_of_another_number_of_classes(explainer: Explainer, images: Tensor) -> None:
    with pytest.raises(ValueError, match=r"weights \[n\] or \[B,K,n\] with B=3 and n=36, got \(7,"):
        explainer(images, np.ones(7, np.float32))
    with pytest.raises(ValueError, match=r"got \(3, 36\)"):  # one for each image, or K for all?
        explainer(images, np.ones((3, 36), np.float32))
