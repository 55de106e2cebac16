"""The network of the authors of Combi-CAM: weights of a mixture, centres of its cells."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from adapter_files import mixture
from torch import Tensor

from combicam import Explainer, ModelConfig, ModelError, load_model
from combicam.export.models.adapters.certh import _read
from combicam.export.models.adapters.efficientnet import EfficientNet
from combicam.export.models.models import LoadedModel


@pytest.fixture(scope="module")
def loaded(certh_folder: Path) -> LoadedModel:
    return load_model(ModelConfig("certh", checkpoint=certh_folder))


@pytest.fixture
def with_head(certh_folder: Path, tmp_path: Path):  # type: ignore[no-untyped-def]
    """A folder with the published backbone and another head."""
    (tmp_path / "backbone.pt").symlink_to(certh_folder / "efficientnet_backbone.pt")

    def load(classes: Path | None = None, **changes: Tensor) -> LoadedModel:
        head = mixture(6) | {key.replace("__", "."): value for key, value in changes.items()}
        torch.save(head, tmp_path / "head.pt")
        return load_model(ModelConfig("certh", checkpoint=tmp_path, classes=classes))

    return load


def test_logits_are_those_of_the_mixtures_weights(
    loaded: LoadedModel, backbone: EfficientNet, certh_folder: Path
) -> None:
    head = torch.load(certh_folder / "mvmf_head.pt")
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        found = loaded.module(images)
        features = backbone(images)
    weight = head["mixture_weights.seq_model.0.weight"]
    expected = features @ weight.T + head["mixture_weights.seq_model.0.bias"]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    # The prediction is the centre of the largest weight.
    assert loaded.classes is not None
    best = int(found[0].argmax())
    assert loaded.classes.latitudes[best] == float(head["mvmf.mus"][0, best])
    assert loaded.classes.longitudes[best] == float(head["mvmf.mus"][1, best])
    assert "degrees" in loaded.note


def test_photos_keep_their_proportions(loaded: LoadedModel) -> None:
    assert loaded.preprocess.resize == "short-side"
    assert loaded.preprocess.size_of(1600, 1000) == (300, 480)
    assert loaded.preprocess.size_of(1200, 1200) == (300, 300)


def test_one_file_with_everything(certh_folder: Path, tmp_path: Path) -> None:
    retrieval = dict.fromkeys(["norm.weight", "res.fc1.weight"])
    parts = {
        "backbone.base_cnn.": torch.load(certh_folder / "efficientnet_backbone.pt"),
        "cls_head.": torch.load(certh_folder / "mvmf_head.pt"),
        "rrm_head.": retrieval,
    }
    whole = {p + key: torch.zeros(1) for p, part in parts.items() for key in part}
    torch.save({"state_dict": whole}, tmp_path / "model.pt")
    names = {name for part in parts.values() for name in part}
    assert _read(tmp_path / "model.pt").keys() == names
    assert names - retrieval.keys() == _read(certh_folder).keys()
    torch.save({"_bn0.bias": torch.zeros(1)}, tmp_path / "again.pt")
    with pytest.raises(ModelError, match=r"_bn0\.bias once, got it again in .*model\.pt"):
        _read(tmp_path)


def test_radians_and_longitudes_beyond_the_dateline(with_head) -> None:  # type: ignore[no-untyped-def]
    degrees = torch.tensor([[0.0, 10, -80, 5, 6, 7], [0.0, 181.5, -190, 20, 30, 180]]).double()
    table = with_head(mvmf__mus=degrees).classes
    assert table.longitudes == pytest.approx((0, -178.5, 170, 20, 30, 180))
    assert table.latitudes == tuple(degrees[0].tolist())
    radians = torch.tensor([[0.1, 1.5, -1.5, 0.5, 0, 0], [3.1, -3.1, 1, 0, 0, 0]]).double()
    loaded = with_head(mvmf__mus=radians)
    assert "radians" in loaded.note
    expected = tuple(math.degrees(v) for v in radians[1].tolist())
    assert loaded.classes.longitudes == pytest.approx(expected)


def test_what_does_not_fit_is_named(with_head, certh_folder: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    swapped = torch.stack([torch.linspace(-170, 170, 6), torch.linspace(-60, 60, 6)])
    with pytest.raises(ModelError, match=r"latitudes in the first row .* got -170 for class 0"):
        with_head(mvmf__mus=swapped)
    with pytest.raises(ModelError, match=r"\[2,n\], .* got \(3, 6\)"):
        with_head(mvmf__mus=torch.zeros(3, 6))
    with pytest.raises(ModelError, match=r"weight is \(5, 1792\) and should be \(6, 1792\)"):
        with_head(mixture_weights__seq_model__0__weight=torch.zeros(5, 1792))
    (tmp_path / "few.csv").write_text("class,latitude,longitude\n0,1,2\n")
    with pytest.raises(ModelError, match="the 6 cells of the checkpoint, got 1"):
        with_head(classes=tmp_path / "few.csv")
    with pytest.raises(ModelError, match=r"with mvmf\.mus"):
        load_model(ModelConfig("certh", checkpoint=certh_folder / "efficientnet_backbone.pt"))
    (tmp_path / "none").mkdir()
    with pytest.raises(ModelError, match=r"efficientnet_backbone\.pt and mvmf_head\.pt"):
        load_model(ModelConfig("certh", checkpoint=tmp_path / "none"))
    with pytest.raises(ModelError, match="no suffix, got 'b4'"):
        load_model(ModelConfig("certh:b4", checkpoint=certh_folder))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_published_sizes(certh_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "backbone.pt").symlink_to(certh_folder / "efficientnet_backbone.pt")
    torch.save(mixture(31_145), tmp_path / "head.pt")
    explainer = Explainer(load_model(ModelConfig("certh", checkpoint=tmp_path)))
    found = explainer(torch.randint(0, 256, (1, 300, 300, 3), dtype=torch.uint8))
    assert len(explainer.layers) == 32 and explainer.layers[-1].name == "backbone._blocks.31"
    assert found.logits.shape == (1, 31_145) and found.heatmaps.shape == (1, 1, 300, 300)
