"""What people use today, called the way that their users call it; images -> heatmaps."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from combicam import Explainer

Explain = Callable[[Tensor], Any]
Size = tuple[int, int]

AUTHORS = "one pass per layer"
# Libraries that normalise each layer by itself enlarge the differences of two runtimes where a
# layer's map is small; pytorch-grad-cam resizes with OpenCV.
TOLERANCE = 5e-2


def library(name: str, model: nn.Module, layers: list[str], size: Size) -> Explain:
    """A library over a copy of the model.

    Args:
        name: of ``LIBRARIES``.
        model: eval, on its device.
        layers: names of the target layers.
        size: (H, W) of the heatmaps, pixels.

    Returns:
        images [B,3,H,W] -> what the library gives, see ``heatmaps_of``.
    """
    return LIBRARIES[name](copy.deepcopy(model), layers, size)


def counterpart(name: str, model: nn.Module, layers: list[str], size: Size) -> Explainer:
    """Ours with the same semantics: the library's preset, or Combi-CAM where maps are summed."""
    device = next(model.parameters()).device
    if name in ("pytorch-grad-cam", "torchcam"):
        return Explainer.preset(name, model, size, layers=layers, device=device)
    return Explainer(model, size, layers=layers, device=device)


def heatmaps_of(found: Any) -> Tensor:
    """float32 [B,H,W] on the CPU of whatever a library, or this one, returns."""
    if hasattr(found, "heatmaps"):
        return found.heatmaps[:, 0].float().cpu()
    if isinstance(found, np.ndarray | Tensor):
        return torch.as_tensor(found).float().cpu()
    return torch.stack([torch.as_tensor(np.asarray(f.cpu())) for f in found]).float()


def typical_error(found: Any, expected: Any) -> float:
    """The median image's largest difference: a ReLU at zero to rounding spoils some, not half."""
    differences = (heatmaps_of(found) - heatmaps_of(expected)).abs().amax((1, 2))
    return float(differences.median())


def _pytorch_grad_cam(model: nn.Module, layers: list[str], size: Size) -> Explain:
    from pytorch_grad_cam import GradCAM

    cam = GradCAM(model=model, target_layers=[model.get_submodule(name) for name in layers])
    return lambda images: cam(input_tensor=images, targets=None)


def _torchcam(model: nn.Module, layers: list[str], size: Size) -> Explain:
    from torchcam.methods import GradCAM

    extractor = GradCAM(model, target_layer=layers)

    def explain(images: Tensor) -> Any:
        scores = model(images.clone().requires_grad_())
        cams = extractor(scores.argmax(1).tolist(), scores)
        return extractor.fuse_cams(cams, target_shape=size)

    return explain


def _captum(model: nn.Module, layers: list[str], size: Size) -> Explain:
    """Its Grad-CAM of each layer, upsampled and summed as Combi-CAM."""
    from captum.attr import LayerGradCam

    wrapped = nn.Sequential(model, nn.LogSoftmax(1))
    cams = [LayerGradCam(wrapped, model.get_submodule(name)) for name in layers]

    def explain(images: Tensor) -> Tensor:
        with torch.no_grad():
            classes = model(images).argmax(1)
        maps = [cam.attribute(images, classes, relu_attributions=True).detach() for cam in cams]
        return _combined(maps, size)

    return explain


def _one_pass_per_layer(model: nn.Module, layers: list[str], size: Size) -> Explain:
    """The recipe of Combi-CAM's authors: a forward and a full backward for each layer."""

    def explain(images: Tensor) -> Tensor:
        maps = []
        for name in layers:
            kept: list[Tensor] = []
            hook = model.get_submodule(name).register_forward_hook(
                lambda _m, _a, output, kept=kept: kept.append(output)
            )
            probabilities = model(images).softmax(1)
            hook.remove()
            kept[0].retain_grad()
            model.zero_grad()
            probabilities.amax(1).sum().backward()
            grad = kept[0].grad
            assert grad is not None
            weights = grad.mean((2, 3), keepdim=True)
            maps.append((weights * kept[0].detach()).sum(1, keepdim=True).relu())
        return _combined(maps, size)

    return explain


def _combined(maps: list[Tensor], size: Size) -> Tensor:
    """Upsampled, summed, and each image in [0, 1]: [B,H,W]."""
    grown = [interpolate(m, size, mode="bilinear", align_corners=True) for m in maps]
    total = torch.stack(grown).sum(0)[:, 0]
    low, high = total.amin((1, 2), keepdim=True), total.amax((1, 2), keepdim=True)
    return (total - low) / (high - low)


LIBRARIES: dict[str, Callable[[nn.Module, list[str], Size], Explain]] = {
    "pytorch-grad-cam": _pytorch_grad_cam,
    "torchcam": _torchcam,
    "captum": _captum,
    AUTHORS: _one_pass_per_layer,
}
