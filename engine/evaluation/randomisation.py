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

# A network -> how its images are explained.
Explain = Callable[[nn.Module], Callable[..., Explanation]]


@dataclass(frozen=True)
class RandomisedStep:
    """The maps after all layers from the top down to ``layer`` have forgotten their weights.

    Attributes:
        layer: the deepest that did.
        layers: how many did.
        correlations: float32 [B], Spearman's, with the maps of the trained network; NaN for a
            constant map.
    """

    layer: str
    layers: int
    correlations: Tensor


def randomisation_check(
    model: nn.Module, images: Tensor, explain: Explain, steps: int = 8, seed: int = 0
) -> list[RandomisedStep]:
    """Re-initialise layers from the top, cascading, and compare the maps of the same classes.

    Maps that stay as they were do not depend on what the network has learnt.

    Args:
        model: the trained network; a copy forgets.
        images: float [B,3,H,W], normalised.
        explain: makes an explainer of a network, as
            ``lambda network: Explainer(network, input_size)``.
        steps: at most so many networks are explained, each with as many more layers forgotten.
        seed: of the new weights.

    Returns:
        From the top down; the last step has no layer left.

    Raises:
        ValueError: no steps.

    Source: Adebayo et al. 2018, arXiv 1810.03292, cascading randomisation.
    """
    if steps < 1:
        raise ValueError(f"randomisation_check: expected steps >= 1, got {steps}")
    explainer = explain(model)
    original = explainer(images)
    targets, maps = original.targets[:, :1], original.heatmaps[:, 0]
    copy = snapshot(model)
    names = _layers_with_weights(copy, images[:1])[::-1]
    found, done = [], 0
    for end in sorted({max(1, round(e)) for e in np.linspace(0, len(names), steps + 1)[1:]}):
        for i, name in enumerate(names[done:end], done):
            _forget(copy.get_submodule(name), seed + i)
        done = end
        changed = explain(copy)(images, targets).heatmaps[:, 0]
        found.append(RandomisedStep(names[end - 1], end, _rank_correlations(maps, changed)))
    return found


def _rank_correlations(one: Tensor, other: Tensor) -> Tensor:
    """Spearman's, image by image: float32 [B], NaN where a map is constant."""
    pairs = zip(*(maps.flatten(1).cpu().numpy() for maps in (one, other)), strict=True)
    found = [spearmanr(a, b).statistic if np.ptp(a) and np.ptp(b) else np.nan for a, b in pairs]
    return torch.tensor(found, dtype=torch.float32)


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
    """New weights as the module draws them itself, or normal with the old ones' deviation."""
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
