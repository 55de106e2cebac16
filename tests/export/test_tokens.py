"""Token grids: found by themselves or given, and the numbers of pytorch-grad-cam."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from cam_oracle import gradcam
from torch import Tensor, nn

import combicam
from combicam import CamSpec, Explainer, LayerError, TokenGrid, export, tokens
from combicam.export.tokens import Place, as_grid, find_places
from combicam.export.trace.layers import select_layers
from combicam.export.trace.probe import LayerInfo, probe
from combicam.export.trace.snapshot import snapshot

timm = pytest.importorskip("timm")
SIZE = (32, 48)


def awake(model: nn.Module, seed: int = 0) -> nn.Module:
    """In eval mode; what starts at zero (heads, scales) gets values."""
    torch.manual_seed(seed)
    for p in model.parameters():
        if not bool(p.any()):
            nn.init.normal_(p, std=0.1)
    return model.eval()


def vit(depth: int = 2, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    shape = {"img_size": SIZE, "embed_dim": 48, "num_heads": 3, "num_classes": 7}
    model = timm.create_model("vit_tiny_patch16_224", depth=depth, **{**shape, **options})
    return awake(model)


def swin() -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(
        "swin_tiny_patch4_window7_224",
        img_size=32,
        window_size=4,
        depths=(1, 2),
        num_heads=(2, 4),
        embed_dim=24,
        num_classes=7,
    )
    return awake(model)


def torchvision_vit() -> nn.Module:
    return awake(torchvision.models.VisionTransformer(32, 8, 2, 2, 32, 64, num_classes=7))


def torchvision_swin() -> nn.Module:
    make = torchvision.models.SwinTransformer
    return awake(make([4, 4], 16, [1, 2], [2, 2], [4, 4], num_classes=7))


def without_prefix(prefix: int, h: int, w: int) -> Callable[[Tensor], Tensor]:
    """As in the documentation of pytorch-grad-cam."""

    def reshape(x: Tensor) -> Tensor:
        x = x[:, prefix:, :].reshape(x.shape[0], h, w, x.shape[2])
        return x.transpose(2, 3).transpose(1, 2)

    return reshape


def channels_last(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, int], list[str], Any]] = {
    "vit": (vit, SIZE, ["blocks.0", "blocks.1.norm1"], without_prefix(1, 2, 3)),
    "registers": (
        lambda: vit(reg_tokens=4),
        SIZE,
        ["blocks.0", "blocks.1.norm1"],
        without_prefix(5, 2, 3),
    ),
    "mean head": (
        lambda: vit(global_pool="avg"),
        SIZE,
        ["blocks.0", "blocks.1"],
        without_prefix(1, 2, 3),
    ),
    "swin": (
        swin,
        (32, 32),
        ["layers.0.blocks.0", "layers.1.blocks.0", "layers.1.blocks.1"],
        channels_last,
    ),
    "torchvision vit": (
        torchvision_vit,
        (32, 32),
        ["encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_1.ln_1"],
        without_prefix(1, 4, 4),
    ),
    "torchvision swin": (
        torchvision_swin,
        (64, 64),
        ["features.1.0", "features.3.0", "features.3.1"],
        channels_last,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_blocks_and_the_numbers_of_pytorch_grad_cam(case: str) -> None:
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    make, size, names, reshape = CASES[case]
    model = make().double()
    explainer = Explainer.preset("pytorch-grad-cam", model, size)
    assert [info.name for info in explainer.layers] == names
    torch.manual_seed(1)
    images = torch.randn(3, 3, *size)
    ours = explainer(images, targets=[1, 4, 6])
    layers = [model.get_submodule(name) for name in names]
    with GradCAM(model=model, target_layers=layers, reshape_transform=reshape) as cam:
        targets = [ClassifierOutputTarget(i) for i in (1, 4, 6)]
        expected = cam(input_tensor=images.double(), targets=targets)
    assert expected.max() > 0.99
    assert np.abs(ours.heatmaps[:, 0].numpy() - expected).max() < 2e-3  # cv2's sampling steps


def test_layer_maps_by_hand() -> None:
    """Gradients of the tokens as they were returned, in float64, one layer and pass at a time."""
    model = vit().double()
    names = ["blocks.0", "blocks.1.norm1", "blocks.1"]
    explainer = Explainer(model, SIZE, layers=names, score="logit", keep_layers=True)
    images = torch.randn(2, 3, *SIZE)
    found = explainer(images, targets=[[2, 5], [0, 3]])
    for name in names:
        kept: list[Tensor] = []
        handle = model.get_submodule(name).register_forward_hook(
            lambda _m, _a, output, kept=kept: kept.append(output)
        )
        logits = model(images.double())
        handle.remove()
        for k, classes in enumerate(([2, 0], [5, 3])):
            score = logits[range(2), classes].sum()
            (grad,) = torch.autograd.grad(score, kept[0], retain_graph=True)
            grids = [t[:, 1:].unflatten(1, (2, 3)).permute(0, 3, 1, 2) for t in (kept[0], grad)]
            expected = gradcam(grids[0].detach(), grids[1]).float()
            torch.testing.assert_close(found.layer_maps[name][:, k], expected)
            assert bool(expected.any()) == (name != "blocks.1")  # which the head does not read


def test_rules_do_not_depend_on_the_weights() -> None:
    model = vit(depth=3)
    fresh = vit(depth=3)
    nn.init.zeros_(fresh.head.weight)  # type: ignore[union-attr]
    for network in (model, fresh):
        frozen = snapshot(network)
        probed = probe(frozen, SIZE)
        for rule, names in (
            ("blocks", ["blocks.0", "blocks.1", "blocks.2.norm1"]),
            ("stages", ["blocks.2.norm1"]),
            ("last", ["blocks.2.norm1"]),
        ):
            assert [i.name for i in select_layers(frozen, probed, rule)] == names
    named = select_layers(frozen, probed, ("blocks.2", "patch_embed.proj"))
    assert named == (
        LayerInfo("patch_embed.proj", "Conv2d", 48, 2, 3),
        LayerInfo("blocks.2", "Block", 48, 2, 3, "tokens", 1),
    )


@pytest.mark.long
@pytest.mark.parametrize("make", [vit, pytest.param(swin, marks=pytest.mark.slow)])
def test_artifacts(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    size = SIZE if make is vit else (32, 32)
    explainer = Explainer(make(), size, layers="blocks", keep_layers=True)
    images = torch.randn(3, 3, *size)
    expected = explainer(images)
    for suffix in (".ts", ".onnx"):
        path = tmp_path / f"tokens{suffix}"
        export(explainer, path, verify=False)
        loaded = Explainer.load(path, device="cpu")
        assert loaded.spec == explainer.spec and loaded.layers == explainer.layers
        found = loaded(images)
        torch.testing.assert_close(found.heatmaps, expected.heatmaps, atol=1e-4, rtol=0)


class Unfolded(nn.Module):
    """Patches that no convolution makes, so that their grid is nowhere to be seen."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(192, 16)
        self.blocks = nn.Sequential(
            *(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True) for _ in range(2))
        )
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        cells = x.view(b, c, h // 8, 8, w // 8, 8).permute(0, 2, 4, 1, 3, 5)
        logits: Tensor = self.head(self.blocks(self.embed(cells.reshape(b, -1, 192))).mean(1))
        return logits


@pytest.mark.slow
def test_a_grid_that_the_caller_gives(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Unfolded().eval()
    with pytest.raises(LayerError, match=r"shape \(1, 24, 16\).*combicam\.tokens\(h, w, prefix\)"):
        Explainer(model, SIZE, layers=["blocks.0"])
    grid = tokens(4, 6, prefix=0)
    explainer = Explainer(model, SIZE, tokens=grid)
    assert [i.name for i in explainer.layers] == ["blocks.0", "blocks.1"]
    assert explainer.spec.tokens == grid == (4, 6, 0)
    images = torch.randn(3, 3, *SIZE)
    export(explainer, tmp_path / "given.onnx", verify=False)
    loaded = Explainer.load(tmp_path / "given.onnx", device="cpu")
    assert loaded.spec == explainer.spec and isinstance(loaded.spec.tokens, TokenGrid)
    torch.testing.assert_close(
        loaded(images).heatmaps, explainer(images).heatmaps, atol=1e-4, rtol=0
    )


def test_the_adapter_is_validated_and_serialised() -> None:
    assert combicam.tokens(7, 7) == (7, 7, 1) and tokens(14, 14, 5).length == 201
    for wrong in ((0, 7), (7, 7.0), (7, 7, -1), (True, 7)):
        with pytest.raises(ValueError, match="tokens: expected"):
            tokens(*wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"combicam\.tokens"):
        CamSpec(tokens=(7, 7))  # type: ignore[arg-type]
    spec = CamSpec(tokens=(7, 9, 2))
    assert spec.tokens == TokenGrid(7, 9, 2) and CamSpec.from_json(spec.to_json()) == spec
    assert CamSpec.from_json(CamSpec().to_json()).tokens is None


def test_as_grid_keeps_every_value_in_its_place() -> None:
    grid = torch.arange(2 * 3 * 4 * 5.0).view(2, 3, 4, 5)  # [B,C,h,w]
    last = grid.permute(0, 2, 3, 1)
    row = torch.cat([torch.full((2, 2, 3), -1.0), last.flatten(1, 2)], 1)
    for x, place in (
        (grid, Place(3, 4, 5)),
        (last, Place(3, 4, 5, "channels_last")),
        (row, Place(3, 4, 5, "tokens", 2)),
    ):
        assert torch.equal(as_grid(x, place), grid)
        assert torch.equal(as_grid(x[:, None], place), grid[:, None])  # gradients have a K


def test_what_is_no_grid_of_tokens() -> None:
    linear, norm, none, conv = nn.Linear(8, 8), nn.LayerNorm(8), nn.Identity(), nn.Conv2d(8, 8, 1)
    shapes = {
        "patches": ((1, 8, 4, 4), conv),
        "tokens": ((1, 17, 8), none),
        "heads": ((1, 2, 17, 4), none),
        "weights": ((1, 2, 17, 17), none),
        "channels": ((1, 8, 40), none),
        "windows": ((4, 16, 8), linear),
        "quarter": ((1, 5, 8), none),
    }
    found = find_places(
        {name: torch.zeros(shape) for name, (shape, _) in shapes.items()},
        {name: module for name, (_, module) in shapes.items()},
        (64, 64),
    )
    assert found == {
        "patches": Place(8, 4, 4),
        "tokens": Place(8, 4, 4, "tokens", 1),
        "quarter": Place(8, 2, 2, "tokens", 1),
    }
    cube = torch.zeros(1, 8, 8, 8)  # may be read both ways: layers decide
    modules = {"conv": conv, "a": none, "norm": norm, "b": none, "c": nn.Sequential(norm, conv)}
    places = find_places(dict.fromkeys(modules, cube), modules, (64, 64))
    layouts = {name: place.layout for name, place in places.items()}
    first, last = "channels_first", "channels_last"
    assert layouts == {"conv": first, "a": first, "norm": last, "b": last, "c": first}
