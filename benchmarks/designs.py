"""Search for a multi-layer map: methods, layers and fusions, on postcards and on photographs.

Layer maps are computed once per method and fused by every formula of ``FUSIONS``. Only the half of
the photographs that ``claim --photos`` does not report is used.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.claim import ClaimConfig, _postcards
from benchmarks.environment import environment
from benchmarks.photos import NETWORKS, photo_mosaics, photos
from combicam.demo.model import load
from combicam.engine.evaluation.baseline_maps import edge_baseline
from combicam.engine.evaluation.bootstrap import intervals
from combicam.engine.evaluation.grid_pointing import grid_pointing
from combicam.engine.evaluation.methods import another
from combicam.engine.evaluation.metrics import Metrics, MetricSettings
from combicam.engine.explain.explainer import Explainer
from combicam.engine.explain.score_network import score_network
from combicam.kernels.extremes import min_max

# Upsampled layer maps [B,H,W], shallow to deep -> a map [B,H,W].
Fusion = Callable[[list[Tensor]], Tensor]


def _unit(x: Tensor) -> Tensor:
    return min_max(x)[0]


def _total(maps: list[Tensor]) -> Tensor:
    return torch.stack(maps).sum(0)


def _each(maps: list[Tensor]) -> list[Tensor]:
    return [_unit(m) for m in maps]


def _recursive(maps: list[Tensor]) -> Tensor:
    """From deep to shallow: a layer changes the map by up to a factor of two."""
    found = _unit(maps[-1])
    for one in reversed(maps[:-1]):
        found = _unit(found * (1 + _unit(one)))
    return found


def _geometric(maps: list[Tensor]) -> Tensor:
    return torch.stack([(m + 1e-3).log() for m in _each(maps)]).mean(0).exp()


FUSIONS: dict[str, Fusion] = {
    "sum": _total,
    "sum, layers normalised": lambda m: _total(_each(m)),
    "gated": lambda m: _unit(m[-1]) * _unit(_total(m)),
    "gated, layers normalised": lambda m: _unit(m[-1]) * _unit(_total(_each(m))),
    "gated by the square, layers normalised": lambda m: (
        _unit(m[-1]).square() * _unit(_total(_each(m)))
    ),
    "recursive": _recursive,
    "geometric mean": _geometric,
    "squared": lambda m: _unit(m[-1]).square(),
}
METHODS = ("gradcam", "gradcam++", "hirescam", "layercam")
REFERENCES = ("gradcam last sum", "gradcam blocks sum")


@dataclass(frozen=True)
class DesignsConfig:
    """Grid pointing, deletion and insertion of every design on the tuning half of photographs, and
    pointing, energy, IoU, deletion and insertion on postcards.

    Args:
        photos: folder of photographs; without it, postcards only.
        networks: of combicam.demo.photo_models.
        images: photographs for deletion and insertion.
        mosaics: of 2 x 2 photographs.
        postcards: how many.
        steps: of removal.
        methods: of ``combicam.kernels.weigh``.
        designs: those whose name ends so only; empty for all.
        threads: of torch.
        output: where the JSON goes.
    """

    photos: Path | None = None
    networks: tuple[str, ...] = ("lite0",)
    images: int = 24
    mosaics: int = 10
    postcards: int = 72
    steps: int = 10
    methods: tuple[str, ...] = METHODS
    designs: tuple[str, ...] = ()
    threads: int = 2
    output: Path = Path("benchmarks/results/designs-cpu.json")


Columns = dict[str, dict[str, list[float]]]


def designs(config: DesignsConfig, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure, and return the record that is written."""
    torch.set_num_threads(config.threads)
    started = time.perf_counter()
    worlds: dict[str, Columns] = {}
    if config.postcards:
        worlds["postcards"] = _on_postcards(config)
        say(f"  postcards, {time.perf_counter() - started:.0f} s")
    for network in config.networks if config.photos else ():
        worlds[network] = _on_photos(config, network, say)
        say(f"  {network}, {time.perf_counter() - started:.0f} s")
    return {
        "env": environment(),
        "settings": {k: v for k, v in asdict(config).items() if not isinstance(v, Path)},
        "seconds": round(time.perf_counter() - started, 1),
        "worlds": {name: _summary(columns) for name, columns in worlds.items()},
    }


class _Designs:
    """Every design of a model's layer maps, at any image size."""

    def __init__(self, config: DesignsConfig, model: Any) -> None:
        self._config = config
        self.explainers = {
            method: Explainer(model, method=method, keep_layers=True, device="cpu")
            for method in config.methods
        }
        stages = Explainer(model, layers="stages", device="cpu").layers
        names = [info.name for info in stages]
        self._sets: dict[str, Callable[[list[str]], list[str]]] = {
            "last": lambda blocks: blocks[-1:],
            "stages": lambda blocks: [name for name in blocks if name in names],
            "blocks": lambda blocks: blocks,
        }

    def sized(self, size: tuple[int, int]) -> _Designs:
        """The same at another image size."""
        other = object.__new__(_Designs)
        other._config, other._sets = self._config, self._sets
        other.explainers = {
            name: another(e, e.spec, input_size=size) for name, e in self.explainers.items()
        }
        return other

    def __call__(self, images: Tensor, targets: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Name and maps [B,K,H,W] of classes [B,K], one design after the other."""
        size = images.shape[2:]
        for method, explainer in self.explainers.items():
            layers = {
                name: torch.nn.functional.interpolate(
                    maps.float(), size=size, mode="bilinear", align_corners=True
                ).flatten(0, 1)
                for name, maps in explainer(images, targets).layer_maps.items()
            }
            for rule, choose in self._sets.items():
                chosen = [layers[name] for name in choose(list(layers))]
                for fusion, fuse in FUSIONS.items():
                    name = f"{method} {rule} {fusion}"
                    alone = rule == "last" and fusion not in ("sum", "squared")
                    same = rule != "last" and fusion == "squared"  # as of the last layer
                    if not alone and not same and self._wanted(name):
                        yield name, _unit(fuse(chosen)).unflatten(0, targets.shape)

    def _wanted(self, name: str) -> bool:
        chosen = (*self._config.designs, *REFERENCES)
        return not self._config.designs or name.endswith(chosen)


def _add(columns: Columns, name: str, found: dict[str, Tensor]) -> None:
    for metric, values in found.items():
        columns.setdefault(name, {}).setdefault(metric, []).extend(values.flatten().tolist())


def _on_postcards(config: DesignsConfig) -> Columns:
    model = load()
    every = _Designs(config, model)
    settings = MetricSettings(steps=config.steps, tolerance=8, regions=0)
    first = next(iter(every.explainers.values()))
    scores = score_network(first.session, by_onnxruntime=True)  # type: ignore[arg-type]
    metrics = Metrics(scores, model.preprocess, settings)
    columns: Columns = {}
    for _, images, masks, _ in _postcards(ClaimConfig(images=config.postcards, seed=6_000_000)):
        x = model.preprocess.normalize(images)
        targets = first(x).targets[:, :1]
        subject = metrics.subject(x, targets[:, 0], masks)
        for name, maps in every(x, targets):
            _add(columns, name, metrics.measure(subject, maps[:, 0]))
        _add(columns, "edges", metrics.measure(subject, edge_baseline(x)))
    return columns


def _on_photos(config: DesignsConfig, network: str, say: Callable[[str], None]) -> Columns:
    assert config.photos is not None
    model = NETWORKS[network]()
    every = _Designs(config, model)
    first = next(iter(every.explainers.values()))
    settings = MetricSettings(steps=config.steps, regions=0)
    scores = score_network(first.session, by_onnxruntime=True)  # type: ignore[arg-type]
    metrics = Metrics(scores, model.preprocess, settings, batch_size=16)
    half = photos(config.photos, model, "tune")
    columns: Columns = {}
    for start in range(0, config.images, 8):
        x = torch.stack([photo.x for photo in half[start : min(start + 8, config.images)]])
        targets = scores(x).argmax(1, keepdim=True)
        subject = metrics.subject(x, targets[:, 0])
        for name, maps in every(x, targets):
            _add(columns, name, metrics.measure(subject, maps[:, 0]))
        _add(columns, "edges", metrics.measure(subject, edge_baseline(x)))
        say(f"  {network}: {start + len(x)} photographs")
    side = tuple(2 * n for n in model.preprocess.input_size)
    larger = every.sized(side)  # type: ignore[arg-type]
    for x, targets in photo_mosaics(half, scores, config.mosaics):
        for name, maps in larger(x, targets):
            energy, hit = grid_pointing(maps, 2)
            _add(columns, name, {"grid_energy": energy.nanmean(1), "grid_maximum": hit.nanmean(1)})
    return columns


def _summary(columns: Columns) -> dict[str, Any]:
    """Design -> metric -> mean and the paired differences to both references."""
    record: dict[str, Any] = {}
    for name, metrics in columns.items():
        for metric, values in metrics.items():
            own = np.array(values)
            kinds: list[NDArray[np.float64]] = [own]
            kinds += [own - np.array(columns.get(r, {}).get(metric, own)) for r in REFERENCES]
            found = [asdict(i) for i in intervals(np.stack(kinds, 1), 400)]
            record.setdefault(name, {})[metric] = found[0] | {
                f"minus {reference}": row
                for reference, row in zip(REFERENCES, found[1:], strict=True)
            }
    return record
