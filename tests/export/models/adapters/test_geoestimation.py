"""Three levels of cells on one ResNet, and the product of their probabilities."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from adapter_files import numbered, tiny_trunk
from cam_oracle import assert_rounding_only, combi_cam
from torch import Tensor, nn
from torchvision.models.resnet import ResNet, resnet50

from combicam import Explainer, ModelConfig, ModelError, export, load_model
from combicam.cli import main
from combicam.export.classes import s2
from combicam.export.classes.cells import CellTable
from combicam.export.models.adapters.geoestimation import GeoEstimation

LEVELS = {"coarse": 4, "middle": 6, "fine": 8}
HEADER = "class_label,hex_id,imgs_per_cell,latitude_mean,longitude_mean"


def make_cells(count: int = 40) -> dict[str, CellTable]:
    """Fine cells, and those of the two coarser levels that hold them, in shuffled order."""
    rng = np.random.default_rng(3)
    leaves = s2.leaves(rng.uniform(35, 60, count).tolist(), rng.uniform(-10, 30, count).tolist())
    found = {}
    for name, level in LEVELS.items():
        ids = rng.permutation(np.unique(s2.ancestors(leaves, level)))
        found[name] = CellTable(*s2.centers(ids), ids)
    return found


def write(table: CellTable, path: Path) -> None:
    rows = zip(range(len(table)), table.tokens, table.latitudes, table.longitudes, strict=True)
    lines = [f"{i},{token},50,{lat},{lon}" for i, token, lat, lon in rows]
    # As the project writes them: two lines before the header.
    path.write_text("\n".join(["img_min,50", "img_max,1000", HEADER, *lines]) + "\n")


@pytest.fixture(scope="module")
def cells() -> dict[str, CellTable]:
    return make_cells()


@pytest.fixture(scope="module")
def folder(
    resnet: nn.Module, cells: dict[str, CellTable], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A checkpoint, and the tables of its levels."""
    path = tmp_path_factory.mktemp("geoestimation")
    torch.manual_seed(2)
    state = {f"model.{k}": v for k, v in numbered(resnet).items()}
    for i, table in enumerate(cells.values()):
        state[f"classifier.{i}.weight"] = torch.randn(len(table), 512)
        state[f"classifier.{i}.bias"] = torch.randn(len(table))
    torch.save({"epoch": 3, "state_dict": state}, path / "base_M.ckpt")
    (path / "cells").mkdir()
    for name, table in cells.items():
        write(table, path / "cells" / f"{name}.csv")
    return path


def logits_of(folder: Path, resnet: nn.Module, images: Tensor) -> list[Tensor]:
    """All three levels, with torchvision's own network."""
    state = torch.load(folder / "base_M.ckpt")["state_dict"]
    with torch.no_grad():
        features = nn.Sequential(*list(resnet.children())[:-1])(images).flatten(1)
        return [
            features @ state[f"classifier.{i}.weight"].T + state[f"classifier.{i}.bias"]
            for i in range(3)
        ]


@pytest.mark.parametrize("level", [*LEVELS, ""])
def test_a_level(level: str, folder: Path, cells: dict[str, CellTable], resnet: nn.Module) -> None:
    name = level or "fine"
    model = f"geoestimation:{level}" if level else "geoestimation"
    loaded = load_model(
        ModelConfig(model, checkpoint=folder / "base_M.ckpt", classes=folder / f"cells/{name}.csv")
    )
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        found = loaded.module(images)
    expected = logits_of(folder, resnet, images)[list(LEVELS).index(name)]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert loaded.classes is not None and loaded.classes.s2_tokens == cells[name].tokens
    assert loaded.name == f"geoestimation:{name}" and not loaded.module.training
    # 256 pixels for the short side, 224 in its centre.
    assert loaded.preprocess.input_size == (224, 224)
    assert int(224 / loaded.preprocess.crop_pct) == 256


def test_hierarchy_is_the_product_of_three_probabilities(
    folder: Path, cells: dict[str, CellTable], resnet: nn.Module
) -> None:
    config = ModelConfig(
        "geoestimation:hierarchy", checkpoint=folder / "base_M.ckpt", classes=folder / "cells"
    )
    loaded = load_model(config)
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        found = loaded.module(images).double()
    coarse, middle, fine = (x.double().softmax(-1) for x in logits_of(folder, resnet, images))
    product = torch.empty_like(fine)
    for i, token in enumerate(cells["fine"].tokens):
        above = [s2.ancestors(np.array([s2.cell_id(token)], np.uint64), n) for n in (4, 6)]
        at = [
            int(np.flatnonzero(cells[name].ids == cell)[0])
            for name, cell in zip(("coarse", "middle"), above, strict=True)
        ]
        product[:, i] = fine[:, i] * coarse[:, at[0]] * middle[:, at[1]]
    torch.testing.assert_close(found.exp(), product, atol=1e-6, rtol=1e-4)
    total = product.sum(1, keepdim=True)
    torch.testing.assert_close(found.softmax(-1), product / total, atol=1e-6, rtol=1e-4)
    assert loaded.classes is not None and loaded.classes.s2_tokens == cells["fine"].tokens


def tiny_hierarchy() -> GeoEstimation:
    heads = [nn.Linear(64, n) for n in (3, 5, 9)]
    above = np.array([[0, 0, 0, 1, 1, 1, 2, 2, 2], [0, 0, 1, 1, 2, 2, 3, 4, 4]])
    return GeoEstimation(tiny_trunk(), heads, above).eval()


def test_the_hierarchy_is_explained_as_autograd_says() -> None:
    network, images = tiny_hierarchy(), torch.randn(16, 3, 32, 32)
    explainer = Explainer(network, (32, 32))
    found = explainer(images)
    names = [info.name for info in explainer.layers]
    assert names == ["trunk.1", "trunk.2"] and not found.flat.any()
    expected = combi_cam(
        copy.deepcopy(network).double(), names, images.double(), found.targets[:, 0]
    )
    assert_rounding_only((found.heatmaps[:, 0] - expected).abs().amax((1, 2)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["geo.onnx", "geo.ts"])
def test_the_hierarchy_becomes_a_file(name: str, tmp_path: Path) -> None:
    explainer = Explainer(tiny_hierarchy(), (32, 32))
    export(explainer, tmp_path / name)
    images = torch.randn(3, 3, 32, 32)
    here, there = explainer(images), Explainer.load(tmp_path / name, device="cpu")(images)
    assert torch.equal(here.targets, there.targets) and not here.flat.any()
    torch.testing.assert_close(here.heatmaps, there.heatmaps, atol=2e-3, rtol=0)


def test_torchvisions_names_are_taken_too(folder: Path, resnet: nn.Module, tmp_path: Path) -> None:
    state = torch.load(folder / "base_M.ckpt")["state_dict"]
    named = {k: v for k, v in state.items() if k.startswith("classifier.")}
    own = {f"model.{k}": v for k, v in resnet.state_dict().items() if not k.startswith("fc.")}
    torch.save({"state_dict": {**named, **own}}, tmp_path / "named.ckpt")
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        a, b = (
            load_model(ModelConfig("geoestimation", checkpoint=path)).module(images)
            for path in (folder / "base_M.ckpt", tmp_path / "named.ckpt")
        )
    assert torch.equal(a, b)


def test_what_does_not_fit_is_named(
    folder: Path, cells: dict[str, CellTable], tmp_path: Path
) -> None:
    checkpoint = folder / "base_M.ckpt"

    def load(model: str = "geoestimation", **changes: Path) -> None:
        load_model(ModelConfig(model, **{"checkpoint": checkpoint, **changes}))

    with pytest.raises(ModelError, match="coarse, middle, fine, hierarchy, got 'huge'"):
        load("geoestimation:huge")
    with pytest.raises(ModelError, match=r"--classes FOLDER .* got none"):
        load("geoestimation:hierarchy")
    with pytest.raises(ModelError, match=r"got .*fine\.csv"):
        load("geoestimation:hierarchy", classes=folder / "cells" / "fine.csv")
    few = CellTable(*(column[:3] for column in (cells["fine"].latitudes, cells["fine"].longitudes,
                                                cells["fine"].ids)))  # fmt: skip
    write(few, tmp_path / "few.csv")
    counts = ", ".join(str(len(table)) for table in cells.values())
    with pytest.raises(ModelError, match=rf"\({counts}\), got 3 in few\.csv"):
        load(classes=tmp_path / "few.csv")
    # The cells of another level are no classes of this one.
    with pytest.raises(ModelError, match=rf"expected the {len(cells['fine'])} fine cells"):
        load(classes=folder / "cells" / "coarse.csv")
    state = torch.load(checkpoint)["state_dict"]
    torch.save({k: v for k, v in state.items() if k != "model.7.0.bn1.weight"}, tmp_path / "a.ckpt")
    with pytest.raises(ModelError, match=r"missing: model\.layer4\.0\.bn1\.weight \(1\)"):
        load(checkpoint=tmp_path / "a.ckpt")
    torch.save({k: v for k, v in state.items() if "classifier.2" not in k}, tmp_path / "b.ckpt")
    with pytest.raises(ModelError, match="3 levels coarse, middle, fine, got 2"):
        load(checkpoint=tmp_path / "b.ckpt")


def test_ancestors_that_do_not_fit(resnet: ResNet) -> None:
    heads = [nn.Linear(512, 2), nn.Linear(512, 3)]
    with pytest.raises(ValueError, match=r"ancestors \[1,3\], .* got \(0, 3\)"):
        GeoEstimation(resnet, heads)
    with pytest.raises(ValueError, match="got -1 for cell 1"):
        GeoEstimation(resnet, heads, np.array([[0, -1, 1]]))


def test_the_command_line_lists_its_layers(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = str(folder / "base_M.ckpt")
    main(["layers", "-m", "geoestimation:coarse", "--checkpoint", checkpoint])
    assert "trunk.layer4.0" in capsys.readouterr().out


@pytest.mark.slow
def test_published_sizes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = {f"model.{k}": v for k, v in numbered(resnet50(weights=None)).items()}
    assert state["model.7.2.conv3.weight"].shape == (2048, 512, 1, 1)
    for i, count in enumerate((3298, 7202, 12893)):
        state[f"classifier.{i}.weight"] = 0.01 * torch.randn(count, 2048)
        state[f"classifier.{i}.bias"] = torch.zeros(count)
    torch.save({"state_dict": state}, tmp_path / "base_M.ckpt")
    loaded = load_model(ModelConfig("geoestimation", checkpoint=tmp_path / "base_M.ckpt"))
    found = Explainer(loaded)(torch.randn(1, 3, 224, 224))
    assert found.logits.shape == (1, 12893) and found.heatmaps.shape == (1, 1, 224, 224)
