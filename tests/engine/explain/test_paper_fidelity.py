"""The one graph against the authors' recipe, written again as they run it: a pass for each block.

Combi-CAM (arXiv 2603.24117): for every block of EfficientNet-B4 one forward and one full backward
of the best class's softmax probability; the blocks' Grad-CAMs are upsampled and summed.
"""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from combicam import Explainer
from combicam.engine.explain.artifact_export import natural_noise
from combicam.export.models.adapters.certh import Certh
from combicam.export.models.adapters.efficientnet import EfficientNet, Stage

FEW = (Stage(1, 3, 1, 1, 12), Stage(2, 3, 2, 6, 16), Stage(1, 5, 2, 6, 24))


def images_of(count: int, size: tuple[int, int], seed: int) -> Tensor:
    """Photos' statistics, float32 [B,3,H,W], normalised."""
    return natural_noise(count, size, seed=seed)


def healthy(backbone: EfficientNet, cells: int, size: tuple[int, int]) -> Certh:
    """Random weights of which nothing vanishes.

    Normalisations fit the activations; features are centred and scaled for the head, so that the
    best class has a probability that is neither 1 / n nor 1.
    """
    norms = [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
    backbone.train()
    with torch.no_grad():
        backbone(images_of(6, size, seed=3))
    backbone.eval()
    head = nn.Linear(backbone.out_features, cells)
    with torch.no_grad():
        features = backbone(images_of(6, size, seed=4))
        weight = torch.randn_like(head.weight)
        logits = (features - features.mean(0)) @ weight.T
        head.weight.copy_(weight * 2.5 / logits.std())
        head.bias.copy_(-(features.mean(0) @ head.weight.T))
    return Certh(backbone, head).eval()


def grad_cam(network: nn.Module, block: nn.Module, image: Tensor) -> Tensor:
    """One forward, one backward through everything: [h,w] of one block, before upsampling."""
    seen: dict[str, Tensor] = {}

    def remember(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        output.retain_grad()
        seen["activations"] = output

    hook = block.register_forward_hook(remember)
    network.zero_grad()
    probabilities = F.softmax(network(image), dim=1)
    probabilities[0, probabilities[0].argmax()].backward()
    hook.remove()
    activations, gradients = seen["activations"].detach(), seen["activations"].grad
    assert gradients is not None
    weights = gradients[0].mean(dim=(1, 2))
    weighted = torch.zeros_like(activations[0, 0])
    for weight, channel in zip(weights, activations[0], strict=True):
        weighted = weighted + weight * channel
    return weighted.clamp(min=0)


def by_many_passes(network: Certh, image: Tensor) -> tuple[Tensor, list[float]]:
    """The authors' heatmap [H,W], and the largest value that each block adds to it."""
    total = torch.zeros(image.shape[2:], dtype=image.dtype)
    largest = []
    for block in network.backbone._blocks:
        cam = grad_cam(network, block, image)
        grown = F.interpolate(
            cam[None, None], size=image.shape[2:], mode="bilinear", align_corners=True
        )
        total = total + grown[0, 0]
        largest.append(float(grown.max()))
    return (total - total.min()) / (total.max() - total.min()), largest


def check(network: Certh, images: Tensor, dtype: torch.dtype) -> None:
    """Against the many passes in ``dtype``."""
    explainer = Explainer(network, (images.shape[2], images.shape[3]))
    names = [name for name, _ in network.named_modules() if name.count(".") == 2]
    blocks = [name for name in names if name.startswith("backbone._blocks.")]
    assert [info.name for info in explainer.layers] == blocks
    found = explainer(images)
    assert 0.02 < float(found.scores.min()) and float(found.scores.max()) < 0.999
    other = copy.deepcopy(network).to(dtype)
    for i, image in enumerate(images):
        expected, largest = by_many_passes(other, image[None].to(dtype))
        # Nothing degenerate: the map has structure, and most blocks have a part in it.
        assert float(expected.std()) > 0.05 and not bool(found.flat[i])
        assert sum(value > 1e-3 * max(largest) for value in largest) > 0.7 * len(largest)
        assert float((found.heatmaps[i, 0] - expected).abs().max()) < 1e-4


def test_a_few_blocks() -> None:
    torch.manual_seed(0)
    size = (75, 100)
    network = healthy(EfficientNet(FEW, stem=12, head=48, size=96), 50, size)
    check(network, images_of(3, size, seed=5), torch.float64)


@pytest.mark.slow
@pytest.mark.timeout(2400)  # minutes, on a busy machine many
def test_all_32_blocks_of_b4_at_the_authors_size() -> None:
    torch.manual_seed(0)
    network = healthy(EfficientNet(), 400, (300, 400))
    assert len(network.backbone._blocks) == 32
    # In float64 the depthwise convolutions alone would take minutes.
    check(network, images_of(1, (300, 400), seed=5), torch.float32)
