"""Checkpoints are read for their tensors; what else is pickled in them is never run."""

from __future__ import annotations

import argparse
import sys
import types
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from combicam import ModelConfig, ModelError, load_model
from combicam.export.models.adapters.checkpoint import fill, read_weights, under


class Evil:
    """Would run code when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("gotcha",)


@pytest.fixture
def lightning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A training checkpoint with objects of libraries that are not installed any more."""
    module = types.ModuleType("gone_library")
    callback = type("ModelCheckpoint", (), {"__module__": "gone_library"})
    options = type("AttributeDict", (dict,), {"__module__": "gone_library"})
    module.__dict__.update(ModelCheckpoint=callback, AttributeDict=options)
    monkeypatch.setitem(sys.modules, "gone_library", module)
    content = {
        "epoch": 8,
        "callbacks": {callback: {"best": "x"}, "made": callback()},
        "hyper_parameters": options({"arch": "resnet50", "space": argparse.Namespace(lr=0.1)}),
        "evil": Evil(),
        "state_dict": {
            "a": torch.arange(6.0).reshape(2, 3),
            "b": nn.Parameter(torch.ones(2).half()),
            "c": torch.arange(6.0).reshape(2, 3).T,
        },
    }
    torch.save(content, tmp_path / "epoch=8.ckpt")
    torch.save(content, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    monkeypatch.delitem(sys.modules, "gone_library")
    return tmp_path


@pytest.mark.parametrize("name", ["epoch=8.ckpt", "old.ckpt"])
def test_training_state_is_left_out_and_not_run(
    name: str, lightning: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = read_weights(lightning / name)
    assert list(state) == ["a", "b", "c"] and state["b"].dtype == torch.float16
    assert torch.equal(state["a"], torch.arange(6.0).reshape(2, 3))
    assert torch.equal(state["c"], state["a"].T)
    assert capsys.readouterr().out == ""


def test_other_files(tmp_path: Path) -> None:
    save_file({"x": torch.ones(2)}, tmp_path / "x.safetensors")
    assert torch.equal(read_weights(tmp_path / "x.safetensors")["x"], torch.ones(2))
    (tmp_path / "text.pt").write_text("<html>404</html>")
    with pytest.raises(ModelError, match=r"text\.pt"):
        read_weights(tmp_path / "text.pt")
    torch.save([1, Evil()], tmp_path / "list.pt")
    with pytest.raises(ModelError, match="state dict"):
        read_weights(tmp_path / "list.pt")
    with pytest.raises(FileNotFoundError):
        read_weights(tmp_path / "none.pt")


def test_what_does_not_fit_is_named() -> None:
    own = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 3))
    state = own.state_dict()
    del state["0.num_batches_tracked"]  # says nothing
    fill(own, state, Path("f"), "head.")
    wrong = {**state, "1.weight": torch.zeros(3, 5), "2.bias": torch.zeros(1)}
    del wrong["1.bias"]
    with pytest.raises(ModelError) as error:
        fill(own, wrong, Path("f"), "head.")
    message = str(error.value)
    assert "missing: head.1.bias (1)" in message
    assert "not in the model: head.2.bias (1)" in message
    assert "head.1.weight is (3, 5) and should be (3, 2)" in message


def test_under() -> None:
    one = torch.ones(1)
    assert under({"a.b": one, "a.c.d": one, "ab.c": one}, "a.") == {"b": one, "c.d": one}


@pytest.mark.parametrize("model", ["geoestimation", "certh", "eigenplaces", "cosplace"])
def test_options_that_do_not_go_with_checkpoints(model: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="got none"):
        load_model(ModelConfig(model))
    with pytest.raises(ModelError, match="got --pretrained"):
        load_model(ModelConfig(model, pretrained=True))
    with pytest.raises(FileNotFoundError, match=r"none\.pt"):
        load_model(ModelConfig(model, checkpoint=tmp_path / "none.pt"))
    with pytest.raises(ModelError, match="no references"):
        load_model(ModelConfig("demo", references=tmp_path / "r.npy"))


def test_a_checkpoint_of_another_family_names_it(certh_folder: Path, tmp_path: Path) -> None:
    torch.save({"aggregation.1.p": torch.ones(1)}, tmp_path / "places.pth")
    torch.save({"classifier.0.weight": torch.ones(2, 2)}, tmp_path / "geo.ckpt")
    torch.save({"head.weight": torch.ones(2, 2)}, tmp_path / "own.pth")
    head = certh_folder / "mvmf_head.pt"
    for model, file, hint in (
        ("geoestimation", head, "a checkpoint of certh"),
        ("eigenplaces", tmp_path / "geo.ckpt", "a checkpoint of geoestimation"),
        ("certh", tmp_path / "places.pth", "a checkpoint of eigenplaces"),
    ):
        with pytest.raises(ModelError, match=hint):
            load_model(ModelConfig(model, checkpoint=file))
    with pytest.raises(ModelError, match=r"got head\.weight$"):
        load_model(ModelConfig("geoestimation", checkpoint=tmp_path / "own.pth"))
