"""The presets give the numbers of the libraries they are named for, run live."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from combicam import Explainer, LoadedModel, finer

Draw = Callable[[int, int], Tensor]
LAYERS = ["stage2.1", "stage3.1", "stage4.1"]


@pytest.fixture(scope="module")
def network(demo_model: LoadedModel) -> nn.Module:
    return copy.deepcopy(demo_model.module)


def images_and_targets(model: LoadedModel, draw: Draw) -> tuple[Tensor, list[int]]:
    images = model.preprocess.normalize(draw(3, 200))
    return images, [int(i) for i in model.module(images).argmax(1)]


@pytest.mark.parametrize(
    ("method", "theirs"),
    [
        ("gradcam", "GradCAM"),
        ("gradcam++", "GradCAMPlusPlus"),
        ("xgradcam", "XGradCAM"),
        ("hirescam", "HiResCAM"),
        ("elementwise", "GradCAMElementWise"),
        ("layercam", "LayerCAM"),
    ],
)
def test_pytorch_grad_cam(
    method: str, theirs: str, network: nn.Module, demo_model: LoadedModel, postcards: Draw
) -> None:
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    images, targets = images_and_targets(demo_model, postcards)
    ours = Explainer.preset("pytorch-grad-cam", network, (160, 160), layers=LAYERS, method=method)(
        images, targets=targets
    )
    make: Any = getattr(pytorch_grad_cam, theirs)
    with make(model=network, target_layers=[network.get_submodule(n) for n in LAYERS]) as cam:
        expected = cam(input_tensor=images, targets=[ClassifierOutputTarget(t) for t in targets])
    assert expected.max() > 0.99
    # cv2 places its samples in fixed steps of a pixel.
    assert np.abs(ours.heatmaps[:, 0].numpy() - expected).max() < 2e-3


@pytest.mark.parametrize(
    ("method", "theirs"), [("eigencam", "EigenCAM"), ("eigengradcam", "EigenGradCAM")]
)
def test_eigen_methods_of_pytorch_grad_cam(
    method: str,
    theirs: str,
    network: nn.Module,
    demo_model: LoadedModel,
    postcards: Draw,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Up to the sign, which LAPACK leaves to chance there: their projections are given ours."""
    import pytorch_grad_cam.eigen_cam
    import pytorch_grad_cam.eigen_grad_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    from pytorch_grad_cam.utils.svd_on_activations import get_2d_projection

    def signed(x: np.ndarray) -> np.ndarray:
        found = get_2d_projection(x)
        total = x.sum(1) - x.sum(1).mean((1, 2), keepdims=True)
        along = (found * total).sum((1, 2), keepdims=True)
        return np.where(along < 0, -found, found)

    for module in (pytorch_grad_cam.eigen_cam, pytorch_grad_cam.eigen_grad_cam):
        monkeypatch.setattr(module, "get_2d_projection", signed)
    images, targets = images_and_targets(demo_model, postcards)
    ours = Explainer.preset("pytorch-grad-cam", network, (160, 160), layers=LAYERS, method=method)(
        images, targets=targets
    )
    make: Any = getattr(pytorch_grad_cam, theirs)
    with make(model=network, target_layers=[network.get_submodule(n) for n in LAYERS]) as cam:
        expected = cam(input_tensor=images, targets=[ClassifierOutputTarget(t) for t in targets])
    assert expected.max() > 0.99
    assert np.abs(ours.heatmaps[:, 0].numpy() - expected).max() < 2e-3


def test_aug_smooth_of_pytorch_grad_cam(
    network: nn.Module, demo_model: LoadedModel, postcards: Draw
) -> None:
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    images, targets = images_and_targets(demo_model, postcards)
    smooth = "flips+intensities"
    ours = Explainer.preset(
        "pytorch-grad-cam", network, (160, 160), layers=LAYERS[1:], smooth=smooth
    )(images, targets=targets)
    with GradCAM(network, [network.get_submodule(n) for n in LAYERS[1:]]) as cam:
        each = [ClassifierOutputTarget(t) for t in targets]
        expected = cam(images, each, aug_smooth=True)
    assert expected.max() > 0.9
    assert np.abs(ours.heatmaps[:, 0].numpy() - expected).max() < 2e-3


def test_shapley_cam_of_pytorch_grad_cam(
    network: nn.Module, demo_model: LoadedModel, postcards: Draw
) -> None:
    """Of the probability: the network is piecewise linear, so that a logit's Hessian is zero."""
    from pytorch_grad_cam import ShapleyCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget

    images, targets = images_and_targets(demo_model, postcards)
    values = {"layers": LAYERS[-1], "score": "prob"}
    ours, plain = (
        Explainer.preset("pytorch-grad-cam", network, (160, 160), method=method, **values)(
            images, targets=targets
        ).heatmaps
        for method in ("shapleycam", "gradcam")
    )
    with ShapleyCAM(network, [network.get_submodule(LAYERS[-1])]) as cam:
        expected = cam(images, [ClassifierOutputSoftmaxTarget(t) for t in targets])
    assert expected.max() > 0.99
    assert np.abs(ours[:, 0].numpy() - expected).max() < 2e-3
    assert (ours - plain).abs().max() > 5e-3


def test_finer_cam_of_pytorch_grad_cam(
    network: nn.Module, demo_model: LoadedModel, postcards: Draw
) -> None:
    from pytorch_grad_cam import FinerCAM

    images, _ = images_and_targets(demo_model, postcards)
    explainer = Explainer.preset("pytorch-grad-cam", network, (160, 160), layers=LAYERS)
    ours = explainer(images, targets=finer(3))
    expected = FinerCAM(network, [network.get_submodule(n) for n in LAYERS])(images)
    assert expected.max() > 0.99
    plain = explainer(images).heatmaps
    assert (ours.heatmaps - plain).abs().max() > 0.1
    assert np.abs(ours.heatmaps[:, 0].numpy() - expected).max() < 2e-3


def test_finer_cam_of_torchcam(
    network: nn.Module, demo_model: LoadedModel, postcards: Draw
) -> None:
    from torchcam.methods import FinerCAM

    images, targets = images_and_targets(demo_model, postcards)
    explainer = Explainer.preset("torchcam", network, (160, 160), layers=LAYERS[-1])
    ours = explainer(images, targets=finer(3, classes=targets))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with FinerCAM(network.eval(), LAYERS[-1]) as extractor:
            (maps,) = extractor(targets, network(images.clone().requires_grad_()))
    up = torch.nn.functional.interpolate(maps[:, None], (160, 160), mode="bilinear")[:, 0]
    assert up.max() > 0.9
    assert (ours.heatmaps[:, 0] - up).abs().max() < 1e-4


@pytest.mark.parametrize(("method", "theirs"), [("gradcam", "GradCAM"), ("xgradcam", "XGradCAM")])
def test_torchcam(
    method: str, theirs: str, network: nn.Module, demo_model: LoadedModel, postcards: Draw
) -> None:
    import torchcam.methods

    images, targets = images_and_targets(demo_model, postcards)
    ours = Explainer.preset("torchcam", network, (160, 160), layers=LAYERS, method=method)(
        images, targets=targets
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with getattr(torchcam.methods, theirs)(network.eval(), target_layer=LAYERS) as extractor:
            scores = network(images.clone().requires_grad_())
            expected = extractor.fuse_cams(extractor(targets, scores), target_shape=(160, 160))
    assert expected.max() > 0.9
    assert (ours.heatmaps[:, 0] - expected).abs().max() < 1e-4


def test_methods_that_torchcam_computes_otherwise_are_refused(network: nn.Module) -> None:
    for method in ("gradcam++", "layercam"):
        with pytest.raises(ValueError, match="another formula"):
            Explainer.preset("torchcam", network, (160, 160), method=method)


def test_captum_layer_grad_cam_of_one_layer(
    network: nn.Module, demo_model: LoadedModel, postcards: Draw
) -> None:
    from captum.attr import LayerGradCam

    images, targets = images_and_targets(demo_model, postcards)
    ours = Explainer(
        network, (160, 160), layers="last", score="logit", normalize="none", keep_layers=True
    )(images, targets=targets)
    expected = LayerGradCam(network, network.get_submodule("stage4.1")).attribute(
        images, targets, relu_attributions=True
    )
    torch.testing.assert_close(ours.layer_maps["stage4.1"], expected.detach(), atol=1e-6, rtol=1e-4)
