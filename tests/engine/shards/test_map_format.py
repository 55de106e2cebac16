"""What a run stores of its maps: heatmaps, samples on a layer's grid, maps of all layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from combicam import Explainer, LoadedModel, RunConfig, RunError, open_run, read_shard
from combicam.engine.runner import run_images
from combicam.engine.shards.map_format import MapFormat
from combicam.engine.shards.stored_maps import MAP_COLUMNS

Draw = Callable[[int, int], Tensor]
LAYERS = ["stage1", "stage3", "stage4.1"]


@pytest.fixture(scope="module")
def explainer(demo_model: LoadedModel) -> Explainer:
    return Explainer(demo_model, layers=LAYERS, targets=2, keep_layers=True)


@pytest.fixture(scope="module")
def short_side(demo_model: LoadedModel) -> Explainer:
    preprocess = replace(demo_model.preprocess, resize="short-side")
    return Explainer(
        replace(demo_model, preprocess=preprocess), layers=["stage3"], keep_layers=True
    )


def save(cards: Tensor, folder: Path) -> None:
    folder.mkdir()
    for i, card in enumerate(cards):
        Image.fromarray(card.numpy()).save(folder / f"{i:02d}.png")


def config(folder: Path, name: str, **options: object) -> RunConfig:
    return RunConfig(str(folder / "in"), folder / name, "fake", progress=False, **options)  # type: ignore[arg-type]


def test_grid_and_layers_bring_back_what_was_explained(
    tmp_path: Path, explainer: Explainer, postcards: Draw
) -> None:
    cards = postcards(5, 40)
    save(cards, tmp_path / "in")
    (tmp_path / "in" / "02.png").write_bytes(b"")
    found = explainer(cards)
    for store in ("full", "grid", "layers"):
        run_images(config(tmp_path, store, store=store, batch_size=2), explainer)
        shard = read_shard(tmp_path / store, 0)
        assert shard.ok.tolist() == [True, True, False, True, True]
        h, w = (160, 160) if store == "full" else (80, 80)
        assert np.asarray(shard.heatmaps).shape == (5, 2, h, w)
        bound = 0.5 / 255 + 1e-4 if store == "full" else 0.1
        for i in (0, 1, 3, 4):
            full = shard.heatmap(i)
            assert full.shape == (2, 160, 160)
            errors = np.abs(full - found.heatmaps[i].numpy())
            assert errors.max() < bound and errors.mean() < 0.005
        assert not shard.heatmap(2).any() and shard.heatmap(2).shape == (2, 160, 160)
        assert shard.heatmap(0, (40, 50)).shape == (2, 40, 50)
    assert shard.layer_maps(2) == {}
    for i in (0, 4):
        maps = shard.layer_maps(i)
        assert list(maps) == [info.name for info in explainer.layers]
        for name, ours in maps.items():
            theirs = found.layer_maps[name][i].numpy()
            assert ours.shape == theirs.shape
            bounds = theirs.max((1, 2)) / 255 * 0.5001 + 1e-5 * theirs.max()
            assert (np.abs(ours - theirs).max((1, 2)) <= bounds).all(), name
    with pytest.raises(RunError, match="--store layers"):
        read_shard(tmp_path / "grid", 0).layer_maps(0)


def test_photos_of_several_sizes_keep_their_order(
    tmp_path: Path, short_side: Explainer, postcards: Draw
) -> None:
    cards = postcards(7, 60)
    save(cards, tmp_path / "in")
    for i, size in {1: (224, 160), 2: (112, 80), 3: (160, 224), 5: (230, 160)}.items():
        Image.fromarray(cards[i].numpy()).resize(size).save(tmp_path / "in" / f"{i:02d}.png")
    (tmp_path / "in" / "04.png").write_bytes(b"no image")
    wide, high, square = (160, 224), (224, 160), (160, 160)
    sizes = [square, wide, wide, high, (0, 0), wide, square]
    runs = {
        store: config(tmp_path, store, store=store, batch_size=2, overlays=7)
        for store in ("full", "grid", "layers")
    }
    for store, chosen in runs.items():
        summary = run_images(chosen, short_side)
        assert summary.failures == {"decode_error": 1} and len(summary.overlays) == 6
        shard = read_shard(tmp_path / store, 0)
        assert shard.table.column("id").to_pylist() == [f"{i:02d}.png" for i in range(7)]
        run = open_run(tmp_path / store)
        assert run.table().equals(shard.table)
        stored = set(run.dataset.schema.names)
        assert stored - set(shard.table.column_names) == stored & set(MAP_COLUMNS)
        assert {"heatmap_height", "heatmap_width"} < stored
        step = 1 if store == "full" else 8
        expected = [(1, h // step, w // step) for h, w in sizes]
        assert [h.shape for h in shard.heatmaps] == expected
        for i, size in enumerate(sizes):
            if i == 4:
                assert not shard.ok[i]
                continue
            pixels = Image.open(tmp_path / "in" / f"{i:02d}.png").resize(
                size[::-1], Image.Resampling.BILINEAR
            )
            found = short_side(torch.from_numpy(np.array(pixels))[None])
            assert shard.targets[i, 0] == found.targets[0, 0]
            error = np.abs(shard.heatmap(i, size) - found.heatmaps[0].numpy())
            # One level of a resized pixel may round the other way.
            assert error.mean() < 0.01, (store, i)
            if store == "layers":
                assert shard.layer_maps(i)["stage3"].shape == (1, size[0] // 8, size[1] // 8)


def test_a_bad_photo_does_not_change_its_neighbours_of_any_size(
    tmp_path: Path, short_side: Explainer, postcards: Draw
) -> None:
    cards = postcards(5, 90)
    save(cards, tmp_path / "in")
    Image.fromarray(cards[3].numpy()).resize((224, 160)).save(tmp_path / "in" / "03.png")
    run_images(config(tmp_path, "good", batch_size=4), short_side)
    (tmp_path / "in" / "01.png").write_bytes(b"")
    run_images(config(tmp_path, "bad", batch_size=4), short_side)
    good, bad = (read_shard(tmp_path / name, 0) for name in ("good", "bad"))
    for i in (0, 2, 3, 4):
        assert good.table.slice(i, 1) == bad.table.slice(i, 1)
        assert np.array_equal(good.heatmaps[i], bad.heatmaps[i])


def test_refusals(tmp_path: Path, demo_model: LoadedModel, postcards: Draw) -> None:
    with pytest.raises(ValueError, match="store in"):
        config(tmp_path, "x", store="tiny")
    with pytest.raises(ValueError, match="heatmap_size with store='full'"):
        config(tmp_path, "x", store="grid", heatmap_size=(8, 8))
    save(postcards(1, 0), tmp_path / "in")
    bare = Explainer(demo_model, layers=LAYERS)
    with pytest.raises(ValueError, match="keep_layers=True"):
        run_images(config(tmp_path, "x", store="layers"), bare)


def test_metadata_round_trip() -> None:
    for maps in (
        MapFormat(2, (3, 4)),
        MapFormat(1, None, align_corners=False, layers=("a",)),
        MapFormat(1, (3, 4), (30, 40), True, ("a", "b"), ((3, 4), (1, 2))),
    ):
        assert MapFormat.from_dict(maps.to_dict()) == maps
    assert MapFormat.from_dict({"shape": [1, 2, 3], "dtype": "uint8", "scale": 1 / 255}) == (
        MapFormat(1, (2, 3))
    )
