"""Train PlanetNet from nothing but its seed: `python -m combicam.demo.train --out DIR`.

The loss is the cross-entropy of the cell, plus that of each attribute (its value, or that it is
absent) through an auxiliary head that is thrown away. The masks are never shown: where the evidence
lies, the model must learn by itself.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from .cues import ATTRIBUTES
from .network import INPUT_SIZE, MEAN, STD, PlanetNet, multiply_adds
from .planet import CELLS, Postcard, postcard

UNSEEN = 1_000_000  # seeds from here on are never trained on


@dataclass(frozen=True)
class TrainConfig:
    """Settings of training; `postcards` are for training, `unseen` for the final test."""

    out: Path
    seed: int = 0
    epochs: int = 8
    postcards: int = 21_600
    unseen: int = 3_600
    batch: int = 32
    rate: float = 4e-3
    decay: float = 0.02
    auxiliary: float = 6.0
    threads: int = 1

    def __post_init__(self) -> None:
        for name in ("epochs", "postcards", "unseen", "batch", "threads"):
            if getattr(self, name) < 1:
                got = getattr(self, name)
                raise ValueError(f"train: expected {name} >= 1, got {got}; give a positive number")


@dataclass(frozen=True)
class Album:
    """Postcards: images uint8 [N,160,160,3], cells int64 [N], values int64 [N,6] (4: absent)."""

    images: Tensor
    cells: Tensor
    values: Tensor


def squash(image: Image.Image) -> np.ndarray:
    """A picture as the network takes it, still uint8 [160,160,3]."""
    return np.asarray(image.convert("RGB").resize(INPUT_SIZE[::-1], Image.Resampling.BILINEAR))


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    """The picture after a JPEG round trip."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


def normalise(images: Tensor) -> Tensor:
    """uint8 [B,160,160,3] to normalised float32 [B,3,160,160]."""
    scaled = (images.float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    return scaled.permute(0, 3, 1, 2)


def album(count: int, first_seed: int, worn: bool) -> Album:
    """Postcards of all cells in turn; `worn`: some blurred, some JPEG; else JPEG of 85 to 95."""
    images = np.empty((count, *INPUT_SIZE, 3), np.uint8)
    values = torch.empty(count, len(ATTRIBUTES), dtype=torch.int64)
    for i in range(count):
        card = postcard(i % len(CELLS), first_seed + i // len(CELLS))
        rng = np.random.default_rng([first_seed, i])
        images[i] = squash(_wear(Image.fromarray(card.image), rng, worn))
        values[i] = torch.tensor(_values(card))
    return Album(torch.from_numpy(images), torch.arange(count) % len(CELLS), values)


def _wear(image: Image.Image, rng: np.random.Generator, worn: bool) -> Image.Image:
    if not worn:
        return jpeg(image, int(rng.integers(85, 96)))
    draw = rng.random(2)
    if draw[0] < 0.2:
        image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.3, 0.8))))
    return jpeg(image, int(rng.integers(70, 97))) if draw[1] < 0.6 else image


def _values(card: Postcard) -> list[int]:
    shown = {cue.attribute: cue.value for cue in card.cues}
    return [names.index(shown[a]) if a in shown else len(names) for a, names in ATTRIBUTES.items()]


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Flips, shifts, brightness and contrast drawn per picture; normalised [B,3,160,160]."""
    shifts = torch.randint(-8, 9, (len(images), 2), generator=generator).tolist()
    draws = torch.rand(len(images), 3, generator=generator)
    source, moved = images.numpy(), np.empty(images.shape, np.uint8)
    rows, columns = (np.arange(side) for side in INPUT_SIZE)
    for i, (down, right) in enumerate(shifts):
        along = (columns + right).clip(0, INPUT_SIZE[1] - 1)
        along = along[::-1] if draws[i, 0] < 0.5 else along
        moved[i] = source[i].take((rows + down).clip(0, INPUT_SIZE[0] - 1), 0).take(along, 1)
    gain, lift = 0.85 + 0.3 * draws[:, 1, None], 0.4 * draws[:, 2, None] - 0.2
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    x = torch.from_numpy(moved).float()
    x.mul_((gain / (255 * std))[:, None, None]).add_((lift - gain * mean / std)[:, None, None])
    return x.permute(0, 3, 1, 2)


class Attributes(nn.Module):
    """The auxiliary head; log-mean-exp over places is a mean at first and a maximum later."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.score = nn.Conv2d(channels, 5 * len(ATTRIBUTES), 1)

    def forward(self, maps: Tensor) -> Tensor:
        """Feature maps [B,C,h,w] to logits [6B,5]."""
        scores: Tensor = self.score(maps).flatten(2)
        return (scores.logsumexp(2) - math.log(scores.shape[2])).view(-1, 5)


def accuracy(net: PlanetNet, pictures: Album, batch: int = 100) -> float:
    """The share of pictures whose cell comes first."""
    net.eval()
    hits = 0
    with torch.inference_mode():
        for first in range(0, len(pictures.cells), batch):
            logits = net(normalise(pictures.images[first : first + batch]))
            hits += int((logits.argmax(1) == pictures.cells[first : first + batch]).sum())
    return hits / len(pictures.cells)


def train(config: TrainConfig) -> PlanetNet:
    """Trains with AdamW on a one-cycle schedule; prints a line an epoch."""
    torch.manual_seed(config.seed)
    torch.set_num_threads(config.threads)
    generator = torch.Generator().manual_seed(config.seed)
    start = time.perf_counter()
    training, control = album(config.postcards, 0, worn=True), album(720, UNSEEN // 2, worn=False)
    print(f"{config.postcards} postcards in {time.perf_counter() - start:.0f} s", flush=True)
    net = PlanetNet().to(memory_format=torch.channels_last)
    auxiliary = Attributes(net.head.in_features)
    parameters = [*net.parameters(), *auxiliary.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=config.rate, weight_decay=config.decay)
    steps = config.postcards // config.batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.rate, total_steps=config.epochs * steps, pct_start=0.2
    )
    for epoch in range(config.epochs):
        net.train()
        seen = torch.zeros(2)
        order = torch.randperm(config.postcards, generator=generator)
        for picks in order[: steps * config.batch].view(steps, config.batch):
            losses = _losses(net, auxiliary, training, picks, generator)
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(losses[0] + config.auxiliary * losses[1])
            optimizer.step()
            schedule.step()
            seen += losses.detach() / steps
        print(
            f"epoch {epoch + 1}/{config.epochs}: loss {seen[0]:.3f}, auxiliary {seen[1]:.3f}, "
            f"accuracy {accuracy(net, control):.4f}, {time.perf_counter() - start:.0f} s",
            flush=True,
        )
    return net.to(memory_format=torch.contiguous_format).eval()


def _losses(
    net: PlanetNet,
    auxiliary: Attributes,
    training: Album,
    picks: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """The cross-entropies [2] of the cells and of the attributes, over the picked postcards."""
    x = augment(training.images[picks], generator)
    with torch.autocast("cpu", torch.bfloat16):
        maps = net.features(x)
    maps = maps.float()
    cells = F.cross_entropy(net.head(net.pool(maps).flatten(1)), training.cells[picks])
    values = F.cross_entropy(auxiliary(maps), training.values[picks].view(-1))
    return torch.stack([cells, values])


def write(net: PlanetNet, config: TrainConfig, unseen: float) -> None:
    """Writes planet.safetensors and cells.csv into the configured directory."""
    config.out.mkdir(parents=True, exist_ok=True)
    settings = {name: value for name, value in asdict(config).items() if name != "out"}
    metadata = {
        "accuracy": f"{unseen:.4f}",
        "seed": str(config.seed),
        "config": json.dumps(settings),
    }
    tensors = {name: tensor.contiguous() for name, tensor in net.state_dict().items()}
    save_file(tensors, config.out / "planet.safetensors", metadata)
    with (config.out / "cells.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(("class", "name", "latitude", "longitude"))
        rows.writerows((cell.index, cell.name, cell.latitude, cell.longitude) for cell in CELLS)


def _parse(arguments: list[str]) -> TrainConfig:
    parser = argparse.ArgumentParser(prog="python -m combicam.demo.train", description=__doc__)
    parser.add_argument(
        "--out", type=Path, required=True, help="directory for planet.safetensors and cells.csv"
    )
    for name, field in TrainConfig.__dataclass_fields__.items():
        if name != "out":
            kind = type(field.default)
            parser.add_argument(f"--{name}", type=kind, default=field.default, help="%(default)s")
    return TrainConfig(**vars(parser.parse_args(arguments)))


def main(arguments: list[str]) -> None:
    """The command line."""
    config = _parse(arguments)
    net = train(config)
    unseen = accuracy(net, album(config.unseen, UNSEEN, worn=False))
    size = sum(p.numel() for p in net.parameters())
    print(f"{size} parameters, {multiply_adds(net) / 1e6:.1f} M multiply-adds")
    print(f"accuracy on {config.unseen} unseen postcards: {unseen:.4f}")
    write(net, config, unseen)


if __name__ == "__main__":
    main(sys.argv[1:])
