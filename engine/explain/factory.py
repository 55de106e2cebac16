"""Make an explainer from the configurations of model, spec and computation."""

from __future__ import annotations

from pathlib import Path

import torch

from combicam.engine.explain.config import ComputeConfig
from combicam.engine.explain.explainer import Explainer
from combicam.export.models.models import ModelConfig, load_model
from combicam.export.spec import CamSpec


def make_explainer(
    model: ModelConfig,
    cam: CamSpec | None = None,
    compute: ComputeConfig | None = None,
    *,
    keep_layers: bool = False,
) -> Explainer:
    """Load a model or an exported file, and make its explainer.

    Args:
        model: which model.
        cam: what to compute; default: Combi-CAM. An artifact has its own.
        compute: device, precision, backend.
        keep_layers: also return every layer's map.

    Raises:
        ModelError, MissingExtra, FileNotFoundError: no such model or weights.
        ValueError: a spec that differs from the artifact's.
        LayerError, TraceError, ArtifactError: see :class:`Explainer`.
    """
    compute = compute or ComputeConfig()
    if model.is_artifact:
        return _load(model, cam, compute)
    loaded = load_model(model)
    spec = (cam or CamSpec()).to_dict()
    return Explainer(
        loaded,
        device=compute.device or ("cuda" if torch.cuda.is_available() else "cpu"),
        dtype=compute.amp_dtype,
        backend=compute.backend,
        chunk=compute.chunk,
        keep_layers=keep_layers,
        **spec,
    )


def _load(model: ModelConfig, cam: CamSpec | None, compute: ComputeConfig) -> Explainer:
    explainer = Explainer.load(Path(model.model), device=compute.device, backend=compute.backend)
    if cam not in (None, CamSpec(), explainer.spec):
        raise ValueError(
            f"{model.model}: expected the spec that the artifact was exported with "
            f"({explainer.spec.to_json()}), got {cam.to_json() if cam else None}; export it again"
        )
    given = [
        name
        for name in (
            "checkpoint",
            "pretrained",
            "random_weights",
            "num_classes",
            "img_size",
            "resize",
            "side_step",
            "classes",
            "references",
            "output",
            "in_chans",
        )
        if getattr(model, name)
    ]
    given += [name for name in ("amp_dtype", "chunk") if getattr(compute, name)]
    if given:
        raise ValueError(
            f"{model.model}: expected no {', '.join(given)}: an artifact has its own weights, "
            "preprocessing, classes, precision and method; export it again to change them"
        )
    return explainer
