"""Maps must forget with the network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from combicam.engine.evaluation.randomisation import randomisation_check
from combicam.engine.evaluation.results import Evaluation
from combicam.engine.explain.explanation import Explanation


class Scaled(nn.Module):
    """A module whose weights no initialiser of torch knows."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(8, 1, 1) * 0.1 + 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def small_network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        Scaled(),
        nn.Conv2d(8, 8, 3, padding=1, stride=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    ).eval()


def cam(module: nn.Module) -> Callable[..., Explanation]:
    """The class activation map of the network's last linear layer."""

    def call(images: Tensor, targets: Tensor | None = None) -> Explanation:
        acts, head = module[:6](images), module[8]
        logits = head(acts.mean((2, 3)))
        ids = logits.argmax(1, keepdim=True) if targets is None else targets
        maps = torch.einsum("bkc,bchw->bkhw", head.weight[ids], acts)
        none = torch.zeros(len(images), 1)
        return Explanation(maps, ids, none, logits, none, none > 0)

    return call


def test_layers_forget_from_the_top_and_the_model_does_not() -> None:
    model = small_network().requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images, state = torch.randn(4, 3, 16, 16), torch.random.get_rng_state()
    steps = randomisation_check(model, images, cam, steps=5)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [(step.layer, step.layers) for step in steps] == [
        ("8", 1), ("4", 2), ("3", 3), ("2", 4), ("0", 5),
    ]  # fmt: skip
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert steps[-1].correlations.mean() < 0.7


def test_the_seed_decides_the_new_weights_and_not_the_steps() -> None:
    model, images = small_network().requires_grad_(False), torch.randn(4, 3, 16, 16)
    first, again, other = (
        randomisation_check(model, images, cam, steps, seed)
        for steps, seed in ((5, 0), (2, 0), (2, 9))
    )
    assert [step.layers for step in again] == [2, 5]
    torch.testing.assert_close(again[-1].correlations, first[-1].correlations)
    assert not torch.allclose(other[-1].correlations, first[-1].correlations)


def test_a_drawing_of_the_picture_is_found_out() -> None:
    """Maps that do not depend on the weights stay the same: correlation 1 at every step."""

    def draw(module: nn.Module) -> Callable[..., Explanation]:
        def call(images: Tensor, targets: Tensor | None = None) -> Explanation:
            maps = images.mean(1, keepdim=True)
            ids = torch.zeros(len(images), 1, dtype=torch.int64)
            return Explanation(maps, ids, ids.float(), ids.float(), ids.float(), ids > 0)

        return call

    steps = randomisation_check(small_network(), torch.randn(2, 3, 16, 16), draw, steps=3)
    for step in steps:
        torch.testing.assert_close(step.correlations, torch.ones(2))
    with pytest.raises(ValueError, match="steps >= 1, got 0"):
        randomisation_check(small_network(), torch.randn(2, 3, 16, 16), draw, steps=0)


def test_correlations_are_those_of_ranks_and_none_of_a_constant_map() -> None:
    """Maps of the trained network grow with those of a step, fall as they grow, or are constant."""
    model = small_network()
    ramp = torch.rand(16, 16).exp()
    calls = iter([[ramp, ramp, ramp, ramp * 0], [ramp.log(), -ramp, ramp * 0, ramp]])

    def draw(module: nn.Module) -> Callable[..., Explanation]:
        def call(images: Tensor, targets: Tensor | None = None) -> Explanation:
            ids = torch.zeros(4, 1, dtype=torch.int64)
            maps = torch.stack(next(calls))[:, None]
            return Explanation(maps, ids, ids.float(), ids.float(), ids.float(), ids > 0)

        return call

    (step,) = randomisation_check(model, torch.randn(4, 3, 16, 16), draw, steps=1)
    nan = float("nan")
    expected = torch.tensor([1.0, -1.0, nan, nan])
    torch.testing.assert_close(step.correlations, expected, equal_nan=True)


def test_flat_maps_have_no_correlation_and_are_told() -> None:
    steps = [{"layer": "8", "layers": 1, "correlation": None, "images": 0}]
    steps += [{"layer": "4", "layers": 2, "correlation": 0.5, "images": 3}]
    nowhere = Path("evaluation.parquet")
    lines = Evaluation(nowhere, nowhere, {"maps": {}, "randomisation": steps}).lines()
    assert lines == [
        "  1 layer randomised, down to 8: rank correlation none, the maps are constant",
        "  2 layers randomised, down to 4: rank correlation 0.50",
    ]


def test_no_step_is_without_a_randomised_layer() -> None:
    """More steps than layers: every layer is a step, and nothing else is."""
    model, images = small_network().requires_grad_(False), torch.randn(2, 3, 16, 16)
    steps = randomisation_check(model, images, cam, steps=12)
    assert [step.layers for step in steps] == [1, 2, 3, 4, 5]
