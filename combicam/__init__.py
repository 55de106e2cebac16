"""Multi-layer class activation maps of any CNN, in one graph with its scores.

>>> explainer = combicam.Explainer(model, input_size=(224, 224))
>>> explainer(images).heatmaps  # float32 [B,K,H,W] in [0, 1]
"""

from combicam.engine import (
    ComputeConfig,
    Contrast,
    Explainer,
    Explanation,
    OutputError,
    RunConfig,
    RunSummary,
    ShardData,
    Verification,
    blend,
    contrast,
    export,
    make_explainer,
    panel,
    read_shard,
    run,
)
from combicam.engine.reading import OpenRun, open_run
from combicam.engine.status import RunStatus, run_status
from combicam.engine.triton_repository import ServedModel, export_triton_repository
from combicam.engine.webdataset import write_webdataset
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
from combicam.export.tokens import TokenGrid, tokens
from combicam.version import __version__

# `combicam.export` is the function; the package of that name is imported by its modules' names.
__all__ = [
    "ArtifactError",
    "CamSpec",
    "ClassTable",
    "CombicamError",
    "ComputeConfig",
    "Contrast",
    "DecodeError",
    "Explainer",
    "Explanation",
    "LayerError",
    "LoadedModel",
    "MissingExtra",
    "ModelConfig",
    "ModelError",
    "OpenRun",
    "OutputError",
    "Preprocess",
    "RunConfig",
    "RunError",
    "RunStatus",
    "RunSummary",
    "ServedModel",
    "ShardData",
    "TokenGrid",
    "TraceError",
    "Verification",
    "__version__",
    "blend",
    "contrast",
    "export",
    "export_triton_repository",
    "load_model",
    "make_explainer",
    "open_run",
    "panel",
    "read_shard",
    "run",
    "run_status",
    "tokens",
    "write_webdataset",
]
