"""PlanetNet: what is packaged, how well it reads unseen postcards, and what it reads in them."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from safetensors import safe_open
from torch import nn

import combicam.demo.network as network
from combicam.demo.planet import CELLS, Postcard, postcard
from combicam.demo.train import UNSEEN, jpeg, normalise, squash

PICTURES = 288


@pytest.fixture(scope="module")
def net() -> network.PlanetNet:
    return network.build()


@pytest.fixture(scope="module")
def cards() -> list[Postcard]:
    return [postcard(i % len(CELLS), 3 * UNSEEN + i) for i in range(PICTURES)]


def score(net: nn.Module, pictures: list[np.ndarray]) -> float:
    """The accuracy on pictures of the cells in turn, after a JPEG round trip."""
    worn = [squash(jpeg(Image.fromarray(picture), 90)) for picture in pictures]
    with torch.inference_mode():
        hits = [
            net(normalise(batch)).argmax(1) == (torch.arange(len(batch)) + first) % len(CELLS)
            for first, batch in zip(
                range(0, PICTURES, 48), torch.from_numpy(np.stack(worn)).split(48), strict=True
            )
        ]
    return float(torch.cat(hits).float().mean())


def painted_over(card: Postcard, mask: np.ndarray) -> np.ndarray:
    """The picture with a mask, grown by 2 pixels, filled with the median of the rest."""
    grown = np.asarray(Image.fromarray(mask).convert("L").filter(ImageFilter.MaxFilter(5))) > 0
    fill = np.median(card.image[~grown].reshape(-1, 3), axis=0).astype(np.uint8)
    return np.where(grown[..., None], fill, card.image)


def elsewhere(card: Postcard, seed: int) -> np.ndarray:
    """The mask of the cues, moved to where it covers no cue, on the same picture."""
    rng = np.random.default_rng(seed)
    H, W = card.mask.shape
    near = np.asarray(Image.fromarray(card.mask).convert("L").filter(ImageFilter.MaxFilter(9))) > 0
    moved = np.zeros_like(card.mask)
    for cue in card.cues:
        left, top, right, bottom = cue.box
        piece = card.mask[top:bottom, left:right]
        for _ in range(400):
            y, x = (
                int(rng.integers(H // 3, H - piece.shape[0] + 1)),
                int(rng.integers(W - piece.shape[1] + 1)),
            )
            window = (slice(y, y + piece.shape[0]), slice(x, x + piece.shape[1]))
            if not (piece & near[window]).any():
                moved[window] |= piece
                break
    return moved


def test_accuracy_on_unseen_postcards(net: network.PlanetNet, cards: list[Postcard]) -> None:
    assert score(net, [card.image for card in cards]) >= 0.95


def test_painting_over_the_cues_blinds_the_network(
    net: network.PlanetNet, cards: list[Postcard]
) -> None:
    assert score(net, [painted_over(card, card.mask) for card in cards]) < 0.12


def test_painting_over_other_places_does_not(net: network.PlanetNet, cards: list[Postcard]) -> None:
    masks = [elsewhere(card, i) for i, card in enumerate(cards)]
    shares = [mask.sum() / card.mask.sum() for mask, card in zip(masks, cards, strict=True)]
    assert np.mean(shares) > 0.9
    assert (
        score(net, [painted_over(card, mask) for card, mask in zip(cards, masks, strict=True)])
        >= 0.9
    )


def test_no_single_cue_suffices(net: network.PlanetNet, cards: list[Postcard]) -> None:
    pictures = []
    for i, card in enumerate(cards):
        left, top, right, bottom = card.cues[i % len(card.cues)].box
        hidden = card.mask.copy()
        hidden[top:bottom, left:right] = False
        pictures.append(painted_over(card, hidden))
    assert score(net, pictures) < 0.3


def test_the_network_and_its_file_are_small(net: network.PlanetNet) -> None:
    assert sum(p.numel() for p in net.parameters()) <= 500_000
    assert network.WEIGHTS.stat().st_size <= 2_000_000
    assert network.multiply_adds(net) <= 50e6


def test_the_weights_tell_how_they_were_made() -> None:
    with safe_open(network.WEIGHTS, "pt") as file:
        metadata = file.metadata()
    assert float(metadata["accuracy"]) >= 0.95
    assert {"seed", "config"} <= set(metadata)


def test_the_class_table_is_the_planet() -> None:
    with Path(network.__file__).with_name("cells.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["class", "name", "latitude", "longitude"]
    table = [
        (int(r["class"]), r["name"], float(r["latitude"]), float(r["longitude"])) for r in rows
    ]
    assert table == [(cell.index, cell.name, cell.latitude, cell.longitude) for cell in CELLS]


def test_feature_maps_come_in_four_resolutions(net: network.PlanetNet) -> None:
    shapes: dict[str, tuple[int, ...]] = {}

    def note(name: str) -> object:
        return lambda _module, _inputs, out: shapes.update({name: tuple(out.shape[2:])})

    blocks = [(name, m) for name, m in net.named_modules() if isinstance(m, network.Block)]
    hooks = [m.register_forward_hook(note(name)) for name, m in blocks]
    with torch.inference_mode():
        logits = net(torch.zeros(1, 3, *network.INPUT_SIZE))
    for hook in hooks:
        hook.remove()
    assert logits.shape == (1, len(CELLS))
    assert set(shapes.values()) == {(80, 80), (40, 40), (20, 20), (10, 10)}
    assert len(shapes) == len(blocks) >= 8


def test_build_gives_eval_mode_and_fresh_parameters() -> None:
    one, other = network.build(), network.build()
    assert not any(module.training for module in one.modules())
    with torch.no_grad():
        one.head.bias.add_(1)
    assert not torch.equal(one.head.bias, other.head.bias)


def test_a_planet_without_cells_is_refused() -> None:
    with pytest.raises(ValueError, match="PlanetNet: expected classes >= 1, got 0; "):
        network.PlanetNet(classes=0)
