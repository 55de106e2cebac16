"""Multi-layer class activation maps of any CNN, in one graph with its scores.

>>> explainer = combicam.Explainer(model, input_size=(224, 224))
>>> explainer(images).heatmaps  # float32 [B,K,H,W] in [0, 1]
"""

from combicam.engine import (
    ComputeConfig,
    Explainer,
    Explanation,
    RunConfig,
    RunSummary,
    ShardData,
    Verification,
    blend,
    export,
    make_explainer,
    panel,
    read_shard,
    run,
)
from combicam.errors import (
    ArtifactError,
    CombicamError,
    DecodeError,
    LayerError,
    MissingExtra,
    ModelError,
    RunError,
    TraceError,
)
from combicam.export.classes import ClassTable
from combicam.export.models import LoadedModel, ModelConfig, load_model
from combicam.export.preprocess import Preprocess
from combicam.export.spec import CamSpec
from combicam.version import __version__

# `combicam.export` is the function; the package of that name is imported by its modules' names.
__all__ = [
    "ArtifactError",
    "CamSpec",
    "ClassTable",
    "CombicamError",
    "ComputeConfig",
    "DecodeError",
    "Explainer",
    "Explanation",
    "LayerError",
    "LoadedModel",
    "MissingExtra",
    "ModelConfig",
    "ModelError",
    "Preprocess",
    "RunConfig",
    "RunError",
    "RunSummary",
    "ShardData",
    "TraceError",
    "Verification",
    "__version__",
    "blend",
    "export",
    "load_model",
    "make_explainer",
    "panel",
    "read_shard",
    "run",
]
