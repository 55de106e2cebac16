"""Plan what a run explains and stores, and fingerprint it so that it can be continued."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from combicam.engine.explain.protocol import BatchExplainer, has_places
from combicam.engine.geo.five_crop import FiveCropExplainer
from combicam.engine.geo.location_target import LocationTarget, read_location_target
from combicam.engine.inputs.ground_truth import truth_digest
from combicam.engine.run.config import RunConfig
from combicam.engine.shards.map_format import map_format
from combicam.engine.shards.row_format import ShardFormat
from combicam.engine.storage.paths import names_store


@dataclass(frozen=True)
class RunPlan:
    """What a run computes; the same in every process of the run.

    Attributes:
        explainer: explains the batches.
        rows: columns of the rows.
        target: what to explain; None for the best classes.
    """

    explainer: BatchExplainer
    rows: ShardFormat
    target: LocationTarget | None


def plan_run(config: RunConfig, explainer: BatchExplainer) -> RunPlan:
    """Check that an explainer can do what a configuration requests.

    Raises:
        ValueError: heatmaps that cannot be stored as bytes in [0, 1], a target that the
            explainer cannot explain, ground truth for classes without locations, an explainer
            for other crops, or a network that takes no photos.
    """
    explainer.preprocess.check_photos("run")
    spec = explainer.spec
    if spec.fuse == "none" or not spec.unit_range:
        raise ValueError(
            f"run: expected a spec whose heatmaps are one map in [0, 1], got fuse={spec.fuse!r}, "
            f"normalize={spec.normalize!r}; use normalize='map', or the explainer in memory"
        )
    if (config.crops == "five") != isinstance(explainer, FiveCropExplainer):
        raise ValueError(
            f"run: expected a FiveCropExplainer with crops='five' alone, got "
            f"{type(explainer).__name__} with crops={config.crops!r}; wrap the explainer, or set "
            "crops"
        )
    if config.truth is not None and not has_places(explainer):
        raise ValueError(
            f"run: expected classes with locations for truth={str(config.truth)!r}, got none; give "
            "them with --classes, or leave out --truth"
        )
    maps = map_format(explainer, config.storage.store, config.storage.heatmap_size)
    rows = ShardFormat(
        spec,
        maps,
        explainer.classes,
        explain=config.explain,
        has_truncated=config.decode.tolerant,
    )
    return RunPlan(explainer, rows, read_location_target(config.explain, explainer))


def fingerprint(config: RunConfig, explainer: BatchExplainer) -> dict[str, Any]:
    """Everything that determines the rows; JSON-ready."""
    storage, decode = config.storage, config.decode
    return {
        "explainer": explainer.fingerprint(),
        "input": config.input if names_store(config.input) else str(Path(config.input).absolute()),
        "explain": list(config.explain) or None,
        "store": storage.store,
        "heatmap_size": storage.heatmap_size,
        "shard_size": storage.shard_size,
        "top_places": storage.top_places if has_places(explainer) else None,
        "truth": truth_digest(config.truth),
        "max_pixels": decode.max_pixels,
        # CPU decoders give the same pixels up to rounding, and need not be told apart.
        "fast_scale": decode.fast_scale,
        **({"decoder": "gpu"} if decode.decoder == "gpu" else {}),
        **({"tolerant": True} if decode.tolerant else {}),
        **config.selection.to_dict(),
    }
