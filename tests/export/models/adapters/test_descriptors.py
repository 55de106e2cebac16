"""Networks of descriptors explain how much a photo looks like a reference."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from adapter_files import numbered, tiny_trunk
from cam_oracle import assert_rounding_only, combi_cam
from torch import Tensor, nn

from combicam import Explainer, ModelConfig, ModelError, load_model
from combicam.export.models.adapters.descriptors import PlaceDescriptor, Similarity

SIZE = 16


def aggregation(channels: int) -> dict[str, Tensor]:
    return {
        "aggregation.1.p": torch.tensor([2.7]),
        "aggregation.3.weight": torch.randn(SIZE, channels) / channels**0.5,
        "aggregation.3.bias": 0.1 * torch.randn(SIZE),
    }


@pytest.fixture(scope="module")
def folder(resnet: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("places")
    torch.manual_seed(5)
    state = {f"backbone.{k}": v for k, v in numbered(resnet).items()} | aggregation(512)
    torch.save(state, path / "ResNet18_16_eigenplaces.pth")
    np.save(path / "references.npy", 3 * torch.randn(4, SIZE).numpy())
    (path / "names.csv").write_text("class,name\n0,a\n1,b\n2,c\n3,d\n")
    return path


def config(folder: Path, model: str = "eigenplaces", **changes: Path) -> ModelConfig:
    known = {
        "checkpoint": folder / "ResNet18_16_eigenplaces.pth",
        "references": folder / "references.npy",
    }
    return ModelConfig(model, **{**known, **changes})


def by_hand(folder: Path, grid: Tensor) -> Tensor:
    """Descriptors from the last grid, in float64, channel by channel."""
    state = torch.load(folder / "ResNet18_16_eigenplaces.pth")
    p = float(state["aggregation.1.p"])
    grid = grid.double()
    grid = grid / grid.square().sum(1, keepdim=True).sqrt()
    pooled = (grid.clamp(min=1e-6) ** p).flatten(2).mean(2) ** (1 / p)
    found = pooled @ state["aggregation.3.weight"].double().T
    found = found + state["aggregation.3.bias"].double()
    return found / found.square().sum(1, keepdim=True).sqrt()


@pytest.mark.parametrize("model", ["eigenplaces", "cosplace"])
def test_logits_are_cosines(model: str, folder: Path, resnet: nn.Module) -> None:
    loaded = load_model(config(folder, model, classes=folder / "names.csv"))
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        found = loaded.module(images)
        grid = nn.Sequential(*list(resnet.children())[:-2])(images)
    references = torch.from_numpy(np.load(folder / "references.npy")).double()
    references = references / references.norm(dim=1, keepdim=True)
    expected = by_hand(folder, grid) @ references.T
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-4)
    assert loaded.name == model and loaded.classes is not None and loaded.classes.name(2) == "c"


def test_a_photo_is_most_like_its_own_descriptor() -> None:
    descriptor = PlaceDescriptor(tiny_trunk(), nn.Linear(64, SIZE), torch.tensor([3.0])).eval()
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        references = descriptor(images)
        cosines = Similarity(descriptor, 5 * references)(images)
    assert cosines.argmax(1).tolist() == [0, 1, 2]
    torch.testing.assert_close(cosines.diagonal(), torch.ones(3))


def test_one_reference() -> None:
    descriptor = PlaceDescriptor(tiny_trunk(), nn.Linear(64, SIZE), torch.tensor([3.0]))
    network = Similarity(descriptor, torch.randn(1, SIZE)).eval()
    found = Explainer(network, (32, 32), score="logit")(torch.randn(2, 3, 32, 32))
    assert found.logits.shape == (2, 1) and not found.flat.any()


def test_heatmaps_are_those_of_autograd() -> None:
    descriptor = PlaceDescriptor(tiny_trunk(), nn.Linear(64, SIZE), torch.tensor([3.0]))
    network = Similarity(descriptor, torch.randn(3, SIZE)).eval()
    images, targets = torch.randn(16, 3, 32, 32), torch.arange(16) % 3
    explainer = Explainer(network, (32, 32), score="logit")
    found = explainer(images, targets=targets).heatmaps[:, 0].double()
    names = [info.name for info in explainer.layers]
    expected = combi_cam(copy.deepcopy(network).double(), names, images.double(), targets,
                         score="logit")  # fmt: skip
    assert len(names) == 2
    assert_rounding_only((found - expected).abs().amax((1, 2)))


@pytest.mark.parametrize("score", ["logprob", "prob"])
def test_only_the_similarity_itself_is_explained(score: str, folder: Path) -> None:
    with pytest.raises(ValueError, match=rf"score='logit' for eigenplaces, got '{score}'"):
        Explainer(load_model(config(folder)), (64, 64), score=score)


@pytest.mark.slow
def test_vgg16_ends_without_its_last_relu(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(6)
    layers = torchvision.models.vgg16(weights=None, init_weights=False).features
    backbone = nn.Sequential(*list(layers.children())[:-2]).eval()
    state = {f"backbone.{k}": v for k, v in backbone.state_dict().items()} | aggregation(512)
    torch.save(state, tmp_path / "VGG16_16_cosplace.pth")
    loaded = load_model(config(folder, "cosplace", checkpoint=tmp_path / "VGG16_16_cosplace.pth"))
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = backbone(images)
        assert expected.min() < 0
        found = loaded.module.get_submodule("descriptor.backbone")(images)
    assert torch.equal(found, expected)


def test_what_does_not_fit_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="--references FILE"):
        load_model(ModelConfig("eigenplaces", checkpoint=folder / "ResNet18_16_eigenplaces.pth"))
    for name, values, message in (
        ("wide", np.ones((2, 5), np.float32), r"\[n,16\], .* got \(2, 5\)"),
        ("zero", np.zeros((2, SIZE), np.float32), "got 0 for number 0"),
        ("whole", np.ones((2, SIZE), np.int64), "floating-point"),
    ):
        np.save(tmp_path / f"{name}.npy", values)
        with pytest.raises(ModelError, match=message):
            load_model(config(folder, references=tmp_path / f"{name}.npy"))
    (tmp_path / "text.npy").write_text("no numbers")
    with pytest.raises(ModelError, match=r"text\.npy as \.npy of numbers"):
        load_model(config(folder, references=tmp_path / "text.npy"))
    (tmp_path / "few.csv").write_text("class,name\n0,a\n")
    with pytest.raises(ModelError, match="each of 4 references, got 1"):
        load_model(config(folder, classes=tmp_path / "few.csv"))
    state = torch.load(folder / "ResNet18_16_eigenplaces.pth")
    torch.save({**state, "extra.weight": torch.ones(1)}, tmp_path / "extra.pth")
    with pytest.raises(ModelError, match=r"got extra\.weight, too"):
        load_model(config(folder, checkpoint=tmp_path / "extra.pth"))
    torch.save({k: v for k, v in state.items() if ".6." not in k}, tmp_path / "cut.pth")
    with pytest.raises(ModelError, match=r"none in backbone\.6"):
        load_model(config(folder, checkpoint=tmp_path / "cut.pth"))
