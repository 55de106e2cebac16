"""A tiny explainer, and folders of photos."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from combicam.engine.explain.explanation import Explanation
from combicam.export.classes.classes import ClassTable
from combicam.export.preprocess import Preprocess
from combicam.export.spec import CamSpec
from combicam.export.trace.probe import LayerInfo


class FakeExplainer:
    """Explains by brightness; every image on its own. A photo of one colour 77 gives NaN."""

    def __init__(self, targets: int = 1, classes: ClassTable | None = None, **spec: str) -> None:
        self.spec = CamSpec(targets=targets, **spec)
        self.preprocess = Preprocess((24, 32), resize="squash")
        self.classes = classes
        self.device = torch.device("cpu")
        self.weights = "abc"
        self.batch_sizes: list[int] = []
        self.layers: tuple[LayerInfo, ...] = ()
        self.keeps_layers = False

    def layers_at(self, size: tuple[int, int]) -> tuple[LayerInfo, ...]:
        return self.layers

    def fingerprint(self) -> dict[str, str]:
        return {"weights": self.weights, "spec": self.spec.to_json()}

    def __call__(self, images: Tensor, /) -> Explanation:
        self.batch_sizes.append(len(images))
        k = self.spec.targets
        maps = images.float().mean(-1)
        low, high = maps.amin((1, 2)), maps.amax((1, 2))
        flat = high == low
        heat = (maps - low[:, None, None]) / (high - low).clamp(min=1)[:, None, None]
        logits = torch.nn.functional.one_hot((maps.mean((1, 2)).long() % 5), 5).float()
        scores, targets = logits.softmax(-1).topk(k)
        scores[(images == 77).flatten(1).all(1)] = torch.nan
        return Explanation(
            heatmaps=heat[:, None].expand(-1, k, -1, -1),
            targets=targets,
            scores=scores,
            logits=logits,
            ranges=torch.stack([low, high], -1)[:, None].expand(-1, k, -1),
            flat=flat[:, None].expand(-1, k),
        )


def save_photos(folder: Path, count: int, size: tuple[int, int] = (40, 30)) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    paths = []
    for i in range(count):
        coarse = rng.integers(0, 256, (5, 4, 3), dtype=np.uint8)
        paths.append(folder / f"p{i:03d}.jpg")
        Image.fromarray(coarse).resize(size).save(paths[-1])
    return paths
