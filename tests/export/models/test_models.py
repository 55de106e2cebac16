"""Names become networks; weights that do not fit say why."""

from __future__ import annotations

import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn
from torchvision.models import WeightsEnum

from combicam import (
    ClassTable,
    LoadedModel,
    MissingExtra,
    ModelConfig,
    ModelError,
    Preprocess,
    load_model,
)
from combicam.export.models.models import _timm_classes, load_checkpoint


def test_demo_knows_its_cells_and_says_what_it_is() -> None:
    loaded = load_model(ModelConfig("demo"))
    assert loaded.classes is not None and len(loaded.classes) == 36 and loaded.classes.has_places
    assert loaded.preprocess.input_size == (160, 160) and "postcards" in loaded.note
    assert not loaded.module.training


def test_timm_brings_its_preprocessing() -> None:
    config = ModelConfig("timm:resnet18", random_weights=True, num_classes=7, img_size=(64, 96))
    loaded = load_model(config)
    assert loaded.module(torch.zeros(1, 3, 64, 96)).shape == (1, 7)
    assert loaded.preprocess.input_size == (64, 96)
    assert loaded.preprocess.interpolation == "bicubic" and loaded.preprocess.crop_pct < 1


@pytest.mark.parametrize(("count", "mean"), [(1, (0.449,)), (3, (0.485, 0.456, 0.406)), (4, ())])
def test_timm_with_other_channels(count: int, mean: tuple[float, ...]) -> None:
    config = ModelConfig("timm:resnet18", random_weights=True, img_size=64, in_chans=count)
    loaded = load_model(config)
    assert loaded.module(torch.zeros(1, count, 64, 64)).shape == (1, 1000)
    assert loaded.preprocess.channels == count
    assert loaded.preprocess.mean == pytest.approx(mean)
    assert len(loaded.preprocess.std) == len(mean)


def test_channels_are_asked_of_timm_alone() -> None:
    with pytest.raises(ValueError, match="expected in_chans with a model of timm, got it with"):
        ModelConfig("torchvision:resnet18", random_weights=True, in_chans=1)


def grey() -> nn.Module:
    """A network of torchvision whose first convolution was replaced."""
    network = torchvision.models.resnet18()
    network.conv1 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    return network


def test_a_bare_network_tells_its_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    loaded = load_model(ModelConfig("test_models:grey", img_size=64))
    assert loaded.preprocess.channels == 1 and loaded.preprocess.input_size == (64, 64)


def test_torchvision_brings_its_preprocessing() -> None:
    loaded = load_model(ModelConfig("torchvision:resnet18", random_weights=True, resize="squash"))
    assert loaded.preprocess.input_size == (224, 224) and loaded.preprocess.resize == "squash"


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretrained weights that are random: nothing is downloaded, all else is the libraries' own."""

    def load_timm(model: timm.models.ResNet, **_: object) -> None:
        model.eval()

    def load_torchvision(self: WeightsEnum, **_: object) -> dict[str, torch.Tensor]:
        make = getattr(torchvision.models, type(self).__name__.removesuffix("_Weights").lower())
        state: dict[str, torch.Tensor] = make().state_dict()
        return state

    monkeypatch.setattr("timm.models._builder.load_pretrained", load_timm)
    monkeypatch.setattr(WeightsEnum, "get_state_dict", load_torchvision)


@pytest.mark.parametrize(
    ("model", "count", "first", "last"),
    [
        ("timm:resnet18", 1000, "tench", "toilet tissue"),
        ("timm:mobilenetv3_large_100.miil_in21k", 11221, "benthos", "knothole"),
        ("torchvision:resnet18", 1000, "tench", "toilet tissue"),
        ("torchvision:mobilenet_v3_small", 1000, "tench", "toilet tissue"),
    ],
)
@pytest.mark.usefixtures("downloads")
def test_pretrained_models_know_their_classes(
    model: str, count: int, first: str, last: str
) -> None:
    loaded = load_model(ModelConfig(model, pretrained=True))
    assert loaded.classes is not None and len(loaded.classes) == count
    assert loaded.classes.name(0) == first and loaded.classes.name(count - 1) == last
    assert loaded.module(torch.zeros(1, 3, 64, 64)).shape == (1, count)


@pytest.mark.usefixtures("downloads")
def test_names_given_go_before_those_of_pretrained_models(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("".join(f"thing {i}\n" for i in range(1000)))
    for model in ("timm:resnet18", "torchvision:resnet18"):
        loaded = load_model(ModelConfig(model, pretrained=True, classes=tmp_path / "names.txt"))
        assert loaded.classes is not None and loaded.classes.name(999) == "thing 999"


@pytest.mark.usefixtures("downloads")
def test_a_replaced_head_has_no_names() -> None:
    config = ModelConfig("timm:resnet18", pretrained=True, num_classes=7)
    assert load_model(config).classes is None
    kept = load_model(replace(config, num_classes=1000))  # the pretrained head
    assert kept.classes is not None and kept.classes.name(0) == "tench"
    with pytest.raises(ValueError, match="num_classes"):
        load_model(ModelConfig("torchvision:resnet18", pretrained=True, num_classes=7))


@pytest.mark.parametrize("model", ["timm:resnet18", "torchvision:resnet18"])
def test_random_weights_are_the_same_in_every_process(model: str) -> None:
    state = torch.get_rng_state()
    first, second = (load_model(ModelConfig(model, random_weights=True)).module for _ in range(2))
    weights = zip(first.parameters(), second.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in weights)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("model", ["timm:resnet18", "torchvision:resnet18"])
def test_weights_of_unknown_origin_have_no_names(model: str, tmp_path: Path) -> None:
    random = load_model(ModelConfig(model, random_weights=True))
    assert random.classes is None
    torch.save(random.module.state_dict(), tmp_path / "mine.pt")
    assert load_model(ModelConfig(model, checkpoint=tmp_path / "mine.pt")).classes is None


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"label_names": ["n1", "n2"]}, "n2"),
        ({"label_names": ("n1", "n2"), "label_descriptions": {"n2": "goldfish"}}, "goldfish"),
        ({"label_names": ("n1", "n2", "n3")}, None),
        ({}, None),  # no subset of ImageNet has two classes
    ],
)
@pytest.mark.usefixtures("downloads")
def test_names_that_timm_models_bring(change: dict[str, object], name: str | None) -> None:
    known = {**timm.get_pretrained_cfg("resnet18").to_dict(), "num_classes": 2, **change}
    loaded = timm.create_model("resnet18", pretrained=True, pretrained_cfg=known, num_classes=2)
    classes = _timm_classes(loaded)
    assert (classes and classes.name(1)) == name


def test_callable_beside_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_networks.py").write_text(
        "from torch import nn\ndef tiny():\n    return nn.Sequential(nn.Conv2d(3, 4, 3))\n"
        "def wrong():\n    return 'tiny'\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert load_model(ModelConfig("my_networks:tiny")).name == "my_networks:tiny"
    with pytest.raises(ModelError, match="got str"):
        load_model(ModelConfig("my_networks:wrong"))
    with pytest.raises(ModelError, match="AttributeError"):
        load_model(ModelConfig("my_networks:none"))
    with pytest.raises(ModelError, match="ModuleNotFoundError"):
        load_model(ModelConfig("no_such_package:model"))


def test_a_score_that_is_none() -> None:
    with pytest.raises(ValueError, match=r"LoadedModel: expected score in .*got 'logits'"):
        LoadedModel(nn.Identity(), Preprocess((8, 8)), "mine", score="logits")


def test_names_that_are_none() -> None:
    with pytest.raises(ModelError, match="--checkpoint FILE, --pretrained"):
        load_model(ModelConfig("timm:resnet18"))
    with pytest.raises(ModelError, match=r"near: .*resnet50"):
        load_model(ModelConfig("timm:resnet500", random_weights=True))
    with pytest.raises(ModelError, match=r"near: .*resnet1"):
        load_model(ModelConfig("torchvision:resnet1000", random_weights=True))
    with pytest.raises(ModelError, match=r"demo, timm:NAME"):
        load_model(ModelConfig("resnet50"))
    with pytest.raises(ValueError, match="one of checkpoint"):
        ModelConfig("timm:resnet18", pretrained=True, random_weights=True)


def test_a_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingExtra, match=r"^timm:resnet18: .*combicam\[models\]"):
        load_model(ModelConfig("timm:resnet18", random_weights=True))


@pytest.mark.parametrize("wrap", [None, "state_dict", "model", "net", "weights", "ema"])
@pytest.mark.parametrize(
    "prefix",
    ["", "module.", "_orig_mod.module.", "module._orig_mod.", "model.", "net.", "model._orig_mod."],
)
def test_checkpoints_are_unwrapped(wrap: str | None, prefix: str, tmp_path: Path) -> None:
    source, target = nn.Linear(3, 4), nn.Linear(3, 4)
    state = {prefix + k: v for k, v in source.state_dict().items()}
    torch.save({wrap: state, "epoch": 3} if wrap else state, tmp_path / "weights.pt")
    load_checkpoint(target, tmp_path / "weights.pt")
    assert torch.equal(target.weight, source.weight)


def test_checkpoints_of_lightning(tmp_path: Path) -> None:
    """With a Namespace, NumPy's numbers, a loss of its own, and a state within a state."""
    source, target = nn.Linear(3, 4), nn.Linear(3, 4)
    state = {f"net.model.{k}": v for k, v in source.state_dict().items()}
    content = {
        "hyper_parameters": Namespace(lr=0.1, best=np.float64(3.5)),
        "best": np.float32(1.5),
        "state_dict": {"model": {**state, "loss.weight": torch.ones(2)}},
    }
    torch.save(content, tmp_path / "last.ckpt")
    load_checkpoint(target, tmp_path / "last.ckpt")
    assert torch.equal(target.weight, source.weight)


def test_checkpoints_that_are_said_plainly(tmp_path: Path) -> None:
    pointer = tmp_path / "weights.safetensors"
    pointer.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n")
    with pytest.raises(ModelError, match=r"Git-LFS pointer.*git lfs pull"):
        load_checkpoint(nn.Linear(3, 4), pointer)
    torch.save({"state_dict": {}, "config": Path("x")}, tmp_path / "last.ckpt")
    with pytest.raises(ModelError, match=r"only tensors, got pathlib\S*, which was not") as error:
        load_checkpoint(nn.Linear(3, 4), tmp_path / "last.ckpt")
    assert "\x1b" not in str(error.value)


def test_safetensors(tmp_path: Path) -> None:
    source, target = nn.Linear(3, 4), nn.Linear(3, 4)
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    load_checkpoint(target, tmp_path / "weights.safetensors")
    assert torch.equal(target.weight, source.weight)


class Evil:
    """Would run code when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("gotcha",)


def test_checkpoints_that_do_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"weight": torch.zeros(4, 5), "extra": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(ModelError) as error:
        load_checkpoint(nn.Linear(3, 4), tmp_path / "other.pt")
    message = str(error.value)
    assert "missing: bias (1)" in message and "not in the model: extra (1)" in message
    assert "weight is (4, 5) and should be (4, 3)" in message
    torch.save(Evil(), tmp_path / "evil.pt")
    with pytest.raises(ModelError, match="only tensors"):
        load_checkpoint(nn.Linear(3, 4), tmp_path / "evil.pt")
    assert "gotcha" not in capsys.readouterr().out
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ModelError, match="state dict"):
        load_checkpoint(nn.Linear(3, 4), tmp_path / "list.pt")
    with pytest.raises(FileNotFoundError):
        load_checkpoint(nn.Linear(3, 4), tmp_path / "none.pt")


def test_class_table_replaces_the_models_own(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("class,name\n0,a\n1,b\n")
    loaded = load_model(
        ModelConfig(
            "torchvision:resnet18", random_weights=True, num_classes=2, classes=tmp_path / "c.csv"
        )
    )
    assert loaded.classes == ClassTable(names=("a", "b"))
