"""Class activation maps written a second time, by hand and layer by layer, in float64."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def acts_and_grads(
    model: nn.Module, layer: str, images: Tensor, targets: Tensor, score: str, twice: bool = False
) -> tuple[Tensor, Tensor]:
    """One forward and one full backward for one layer, as the authors' recipe does it.

    ``twice``: G - H A / 2 instead of the gradients G, with the Hessian H.
    """
    kept: list[Tensor] = []

    def keep(_module: nn.Module, _args: object, output: Tensor) -> Tensor:
        kept.append(output)
        return output.clone()  # in-place operators behind the layer must not change it

    handle = model.get_submodule(layer).register_forward_hook(keep)
    try:
        logits = model(images.clone().requires_grad_())
    finally:
        handle.remove()
    if score == "logprob":
        logits = logits.log_softmax(-1)
    elif score == "prob":
        logits = logits.softmax(-1)
    y = logits.gather(1, targets[:, None]).sum()
    (grad,) = torch.autograd.grad(y, kept[-1], create_graph=twice)
    if twice:
        along = (grad * kept[-1].detach()).sum()
        (product,) = torch.autograd.grad(along, kept[-1], allow_unused=True)
        grad = grad.detach() - (0 if product is None else product / 2)
    return kept[-1].detach(), grad


def gradcam(acts: Tensor, grads: Tensor) -> Tensor:
    weights = grads.mean((2, 3), keepdim=True)
    return (weights * acts).sum(1).clamp(min=0)


def gradcam_pp(acts: Tensor, grads: Tensor) -> Tensor:
    alpha = grads**2 / (2 * grads**2 + grads**3 * acts.sum((2, 3), keepdim=True) + 1e-8)
    alpha[grads == 0] = 0
    weights = (alpha * grads.clamp(min=0)).sum((2, 3), keepdim=True)
    return (weights * acts).sum(1).clamp(min=0)


def xgradcam(acts: Tensor, grads: Tensor) -> Tensor:
    total = acts.sum((2, 3), keepdim=True) + 1e-8
    weights = (grads * acts / total).sum((2, 3), keepdim=True)
    return (weights * acts).sum(1).clamp(min=0)


def hirescam(acts: Tensor, grads: Tensor) -> Tensor:
    return (grads * acts).sum(1).clamp(min=0)


def elementwise(acts: Tensor, grads: Tensor) -> Tensor:
    return (grads * acts).clamp(min=0).sum(1)


def layercam(acts: Tensor, grads: Tensor) -> Tensor:
    return (grads.clamp(min=0) * acts).sum(1).clamp(min=0)


def projection(x: Tensor) -> Tensor:
    """[B,C,h,w] onto the first principal component of its pixels, which weighs channels >= 0 in
    sum; relu."""
    maps = []
    for image in x:
        pixels = image.flatten(1).T
        pixels = pixels - pixels.mean(0)
        first = torch.linalg.svd(pixels, full_matrices=False).Vh[0]
        first = -first if first.sum() < 0 else first
        maps.append((pixels @ first).view(image.shape[1:]).clamp(min=0))
    return torch.stack(maps)


def eigencam(acts: Tensor, grads: Tensor) -> Tensor:
    return projection(acts)


def eigengradcam(acts: Tensor, grads: Tensor) -> Tensor:
    return projection(grads * acts)


METHODS = {
    "gradcam": gradcam,
    "gradcam++": gradcam_pp,
    "xgradcam": xgradcam,
    "hirescam": hirescam,
    "elementwise": elementwise,
    "layercam": layercam,
    "eigencam": eigencam,
    "eigengradcam": eigengradcam,
}


def fullgrad(biases: Tensor, grads: Tensor) -> Tensor:
    """Each channel of the products' sizes, min-max normalised on its own; their sum."""
    return torch.stack([sum(unit(c) for c in image) for image in (biases * grads).abs()])  # type: ignore[misc]


# The methods of the head; of fullgrad, activations are biases.
HEAD = {**METHODS, "fullgrad": fullgrad}


def unit(maps: Tensor) -> Tensor:
    """Min-max per image; zeros for a flat map."""
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    return torch.where(high > low, (maps - low) / (high - low), 0.0)


def combi_cam(
    model: nn.Module,
    layers: Sequence[str],
    images: Tensor,
    targets: Tensor,
    method: str = "gradcam",
    score: str = "prob",
    is_gated: bool = False,
) -> Tensor:
    """The authors' computation, one forward and backward a layer: float64 [B,H,W].

    Gated, it is multiplied by the last layer's map.
    """
    maps = []
    for layer in layers:
        twice = method == "shapleycam"
        acts, grads = acts_and_grads(model, layer, images, targets, score, twice)
        cam = METHODS["gradcam" if twice else method](acts, grads)[:, None]
        maps.append(
            F.interpolate(cam, size=images.shape[2:], mode="bilinear", align_corners=True)[:, 0]
        )
    total = unit(torch.stack(maps).sum(0))
    return unit(total * unit(maps[-1])) if is_gated else total


def assert_rounding_only(errors: Tensor) -> None:
    """Errors per image of a float32 heatmap against float64.

    A ReLU whose input is zero to rounding may be on in one precision and off in the other; eager
    torch in float32 has such images, too, about one in thirty. All others agree to 1e-4.
    """
    assert len(errors) >= 16
    assert errors.median() < 1e-5 and errors.max() < 2e-3
    assert (errors < 1e-4).double().mean() >= 0.87


def calibrated(model: nn.Module, size: tuple[int, int], seed: int = 0) -> nn.Module:
    """Random weights whose normalisations fit their activations, so that maps do not degenerate."""
    torch.manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            module.reset_running_stats()
    model.train()
    with torch.no_grad():
        model(torch.randn(8, 3, *size))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1
    return model.eval()
