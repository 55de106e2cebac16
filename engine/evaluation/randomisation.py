"""Check that maps change when the model's weights are randomised, layer by layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from combicam.engine.explain.explanation import Explanation
from combicam.export.trace.snapshot import snapshot

# Makes the explainer of a model.
Explain = Callable[[nn.Module], Callable[..., Explanation]]


@dataclass(frozen=True)
class RandomisedStep:
    """The maps after randomising all layers from the top down to ``layer``.

    Attributes:
        layer: the last randomised layer.
        layers: number of randomised layers.
        correlations: float32 [B], Spearman's, with the maps of the trained model; NaN for a
            constant map.
    """

    layer: str
    layers: int
    correlations: Tensor


def randomisation_check(
    model: nn.Module, images: Tensor, explain: Explain, steps: int = 8, seed: int = 0
) -> list[RandomisedStep]:
    """Randomise layers from the top, cumulatively, and compare the maps of the same classes.

    Maps that do not change are independent of what the model has learnt.

    Args:
        model: the trained model; a copy is randomised.
        images: float [B,C,H,W], normalised.
        explain: makes the explainer of a model, such as
            ``lambda model: Explainer(model, input_size)``.
        steps: largest number of steps, each of which randomises equally many more layers.
        seed: of the new weights.

    Returns:
        The steps from the top down; the last one randomises all layers.

    Raises:
        ValueError: ``steps`` below 1.

    Source: Adebayo et al. 2018, arXiv 1810.03292, cascading randomisation.
    """
    if steps < 1:
        raise ValueError(f"randomisation_check: expected steps >= 1, got {steps}")
    explainer = explain(model)
    original = explainer(images)
    targets, maps = original.targets[:, :1], original.heatmaps[:, 0]
    copy = snapshot(model)
    names = _layers_with_weights(copy, images[:1])[::-1]
    results, done = [], 0
    for end in sorted({max(1, round(e)) for e in np.linspace(0, len(names), steps + 1)[1:]}):
        for i, name in enumerate(names[done:end], done):
            _forget(copy.get_submodule(name), seed + i)
        done = end
        changed = explain(copy)(images, targets).heatmaps[:, 0]
        results.append(RandomisedStep(names[end - 1], end, _rank_correlations(maps, changed)))
    return results


def _rank_correlations(one: Tensor, other: Tensor) -> Tensor:
    """Spearman's correlation per image: float32 [B], NaN where a map is constant."""
    pairs = zip(*(maps.flatten(1).cpu().numpy() for maps in (one, other)), strict=True)
    values = [spearmanr(a, b).statistic if np.ptp(a) and np.ptp(b) else np.nan for a, b in pairs]
    return torch.tensor(values, dtype=torch.float32)


def _layers_with_weights(model: nn.Module, image: Tensor) -> list[str]:
    """Modules that own parameters, in order of execution."""
    names: dict[str, None] = {}

    def hook_for(name: str) -> Callable[..., None]:
        return lambda *_: names.setdefault(name)

    handles = [
        module.register_forward_hook(hook_for(name))
        for name, module in model.named_modules()
        if next(module.parameters(recurse=False), None) is not None
    ]
    try:
        with torch.no_grad():
            first = next(model.parameters())
            model(image.to(first))
    finally:
        for handle in handles:
            handle.remove()
    return list(names)


def _forget(module: nn.Module, seed: int) -> None:
    """Draw new weights: the module's own initialisation, or normal with the old deviation."""
    device = next(module.parameters(recurse=False)).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad():
        torch.manual_seed(seed)
        reset = getattr(module, "reset_parameters", None)
        if reset is not None:
            reset()
            return
        for parameter in module.parameters(recurse=False):
            spread = parameter.float().std(correction=0).item()
            parameter.normal_(0, spread or 1.0)
