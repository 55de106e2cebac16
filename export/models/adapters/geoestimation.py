"""Load ``geoestimation`` by Müller-Budack et al.: cells of three sizes on one ResNet.

Source: Geolocation Estimation of Photos using a Hierarchical Model and Scene Classification, ECCV
2018; the checkpoints of its PyTorch implementation, github.com/TIBHannover/GeoEstimation.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from combicam.errors import ModelError
from combicam.export.classes.cell_files import read_cells
from combicam.export.classes.cells import CellTable
from combicam.export.models.adapters.checkpoint import (
    check_family,
    fill,
    read_weights,
    require_checkpoint,
    under,
)
from combicam.export.models.adapters.trunks import resnet_trunk
from combicam.export.models.models import LoadedModel, ModelConfig
from combicam.export.preprocess import Preprocess

LEVELS = ("coarse", "middle", "fine")
HIERARCHY = "hierarchy"
# The shorter side is scaled to 256 pixels, and the centre of 224 is cropped.
PREPROCESS = Preprocess((224, 224), resize="crop", crop_pct=224 / 256, interpolation="bilinear")
_HEAD = re.compile(r"classifier\.(\d+)\.weight")


class GeoEstimation(nn.Module):
    """Images -> logits of the cells of one level, or of the fine cells by the hierarchy.

    Hierarchy: log p(fine) + Σ log p(coarser cell that contains it). The softmax is the product of
    the three probabilities, divided by its sum over the fine cells.

    Args:
        trunk: images [B,3,H,W] -> [B,C,h,w].
        heads: Linear layers from C features to the cells, coarser levels first; unused ones may
            be left out.
        ancestors: int64 [len(heads) - 1, n]: for every cell of the last head, its cell in each of
            the others; empty with a single head.

    Raises:
        ValueError: ancestors that do not match the heads.
    """

    ancestors: Tensor

    def __init__(
        self,
        trunk: nn.Module,
        heads: Sequence[nn.Linear],
        ancestors: NDArray[np.int64] | Tensor | None = None,
    ) -> None:
        super().__init__()
        finest = heads[-1].out_features
        table = torch.zeros((0, finest), dtype=torch.int64)
        if ancestors is not None:
            table = torch.as_tensor(ancestors).long()
        if tuple(table.shape) != (len(heads) - 1, finest):
            raise ValueError(
                f"GeoEstimation: expected ancestors [{len(heads) - 1},{finest}], a row for each "
                f"coarser head, got {tuple(table.shape)}"
            )
        for row, head in zip(table, heads, strict=False):
            wrong = torch.nonzero((row < 0) | (row >= head.out_features))
            if len(wrong):
                i = int(wrong[0])
                raise ValueError(
                    f"GeoEstimation: expected every cell to lie in one of {head.out_features} "
                    f"coarser cells, got {int(row[i])} for cell {i}; take the cells of one "
                    "partitioning"
                )
        self.trunk = trunk
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.heads = nn.ModuleList(heads)
        self.register_buffer("ancestors", table)

    def forward(self, images: Tensor) -> Tensor:
        features = self.pool(self.trunk(images)).flatten(1)
        *coarser, finest = (head(features) for head in self.heads)
        if not coarser:
            return finest
        total: Tensor = finest.log_softmax(-1)
        for row, logits in zip(self.ancestors, coarser, strict=True):
            total = total + logits.log_softmax(-1).index_select(1, row)
        return total


def load(level: str, config: ModelConfig) -> LoadedModel:
    """Load ``--model geoestimation[:LEVEL]``.

    Args:
        level: ``coarse``, ``middle``, ``fine`` (the default), or ``hierarchy``: the fine cells by
            all three levels.
        config: with the checkpoint and the classes: the CSV of the level's cells, or the folder of
            the three levels' CSVs, which ``hierarchy`` needs.

    Raises:
        ModelError: another checkpoint, or the wrong number of cells.
        FileNotFoundError: no such file.
    """
    level = level or LEVELS[-1]
    if level not in (*LEVELS, HIERARCHY):
        raise ModelError(
            f"geoestimation: expected a level of {', '.join((*LEVELS, HIERARCHY))}, got {level!r}"
        )
    path = require_checkpoint(config)
    state = read_weights(path)
    check_family(state, ["classifier.0.weight"], "geoestimation", path)
    heads = _heads(state, path)
    chosen = heads if level == HIERARCHY else [heads[LEVELS.index(level)]]
    tables = _Tables.read(config.classes, [head.out_features for head in heads])
    if level == HIERARCHY and not tables.is_complete:
        raise ModelError(
            f"geoestimation:hierarchy: expected --classes FOLDER with the cells of the three "
            f"levels ({', '.join(str(head.out_features) for head in heads)}), got "
            f"{config.classes or 'none'}; it maps fine cells to coarser ones"
        )
    trunk = resnet_trunk(under(state, "model."), path, "model.")
    ancestors = tables.ancestors() if level == HIERARCHY else None
    cells = tables.levels[-1 if level == HIERARCHY else LEVELS.index(level)]
    if config.classes is not None and cells is None:
        raise ModelError(
            f"{config.model}: expected the {chosen[-1].out_features} {level} cells, got those of "
            f"another level in {config.classes}"
        )
    return LoadedModel(
        module=GeoEstimation(trunk, chosen, ancestors).eval(),
        preprocess=PREPROCESS,
        name=f"geoestimation:{level}",
        classes=cells.to_classes() if cells is not None else None,
        note="geoestimation: made for five crops of an image; without --crops five the centre is "
        "explained",
    )


def _heads(state: dict[str, Tensor], path: Path) -> list[nn.Linear]:
    """One Linear per level, coarse first."""
    found = sorted(int(m[1]) for key in state if (m := _HEAD.fullmatch(key)))
    if found != list(range(len(LEVELS))):
        raise ModelError(
            f"checkpoint {path}: expected classifiers of the {len(LEVELS)} levels "
            f"{', '.join(LEVELS)}, got {len(found)}"
        )
    heads = []
    for i in found:
        weights = under(state, f"classifier.{i}.")
        cells, features = weights["weight"].shape
        head = nn.Linear(features, cells)
        fill(head, weights, path, f"classifier.{i}.")
        heads.append(head)
    return heads


@dataclass(frozen=True)
class _Tables:
    """The cells of every level, if known."""

    levels: tuple[CellTable | None, ...]

    @property
    def is_complete(self) -> bool:
        return None not in self.levels

    @classmethod
    def read(cls, path: Path | None, counts: Sequence[int]) -> _Tables:
        """Read a file or folder; the number of cells determines a file's level."""
        found: dict[int, CellTable] = {}
        if path is not None:
            files = sorted(path.glob("*.csv")) if path.is_dir() else [path]
            tables = {file: read_cells(file) for file in files}
            found = {len(table): table for table in tables.values() if len(table) in counts}
            if not found:
                got = ", ".join(f"{len(t)} in {file.name}" for file, t in tables.items())
                raise ModelError(
                    f"geoestimation: expected cells of the checkpoint's levels "
                    f"({', '.join(str(count) for count in counts)}), got {got or 'no .csv file'} "
                    f"from {path}"
                )
        return cls(tuple(found.get(count) for count in counts))

    def ancestors(self) -> NDArray[np.int64]:
        """Ancestors of the fine cells, [levels - 1, fine cells]."""
        *coarser, fine = (table for table in self.levels if table is not None)
        return np.stack([fine.ancestors_in(table) for table in coarser])
