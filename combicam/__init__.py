"""Multi-layer class activation maps of any CNN, in one graph with its scores.

>>> explainer = combicam.Explainer(model, input_size=(224, 224))
>>> explainer(images).heatmaps  # float32 [B,K,H,W] in [0, 1]
"""

from typing import TYPE_CHECKING

from combicam.lazy import make_lazy
from combicam.version import __version__ as __version__

# A public name has two lines: one here, for type checkers, and one below, for Python.
# `combicam.export` is the function; the package of that name is imported by its modules' names.
if TYPE_CHECKING:
    from combicam.engine.blending import blend as blend
    from combicam.engine.blending import panel as panel
    from combicam.engine.config import ComputeConfig as ComputeConfig
    from combicam.engine.config import RunConfig as RunConfig
    from combicam.engine.evaluation.config import EvaluateConfig as EvaluateConfig
    from combicam.engine.evaluation.evaluating import evaluate as evaluate
    from combicam.engine.evaluation.judging import MetricSettings as MetricSettings
    from combicam.engine.evaluation.results import Evaluation as Evaluation
    from combicam.engine.explainer import Explainer as Explainer
    from combicam.engine.explanation import Explanation as Explanation
    from combicam.engine.exporting import export as export
    from combicam.engine.geo.accuracy import Accuracy as Accuracy
    from combicam.engine.geo.accuracy import accuracy as accuracy
    from combicam.engine.geo.density import prediction_density as prediction_density
    from combicam.engine.geo.distance import distance_km as distance_km
    from combicam.engine.geo.geojson import write_geojson as write_geojson
    from combicam.engine.geo.geoparquet import write_geoparquet as write_geoparquet
    from combicam.engine.geo.influence import concept_influence as concept_influence
    from combicam.engine.making import make_explainer as make_explainer
    from combicam.engine.reading import OpenRun as OpenRun
    from combicam.engine.reading import open_run as open_run
    from combicam.engine.report.writing import write_report as write_report
    from combicam.engine.runner import run as run
    from combicam.engine.shards import ShardData as ShardData
    from combicam.engine.shards import read_shard as read_shard
    from combicam.engine.status import RunStatus as RunStatus
    from combicam.engine.status import run_status as run_status
    from combicam.engine.summary import RunSummary as RunSummary
    from combicam.engine.targets import Contrast as Contrast
    from combicam.engine.targets import contrast as contrast
    from combicam.engine.triton_repository import ServedModel as ServedModel
    from combicam.engine.triton_repository import (
        export_triton_repository as export_triton_repository,
    )
    from combicam.engine.verifying import OutputError as OutputError
    from combicam.engine.verifying import Verification as Verification
    from combicam.engine.webdataset import write_webdataset as write_webdataset
    from combicam.errors import ArtifactError as ArtifactError
    from combicam.errors import CombicamError as CombicamError
    from combicam.errors import DecodeError as DecodeError
    from combicam.errors import LayerError as LayerError
    from combicam.errors import MissingExtra as MissingExtra
    from combicam.errors import ModelError as ModelError
    from combicam.errors import RunError as RunError
    from combicam.errors import TraceError as TraceError
    from combicam.export.cell_files import read_cells as read_cells
    from combicam.export.cell_files import write_cells as write_cells
    from combicam.export.cells import CellTable as CellTable
    from combicam.export.classes import ClassTable as ClassTable
    from combicam.export.models import LoadedModel as LoadedModel
    from combicam.export.models import ModelConfig as ModelConfig
    from combicam.export.models import load_model as load_model
    from combicam.export.preprocess import Preprocess as Preprocess
    from combicam.export.spec import CamSpec as CamSpec
    from combicam.export.tokens import TokenGrid as TokenGrid
    from combicam.export.tokens import tokens as tokens

__all__ = make_lazy(
    __name__,
    {
        "combicam.engine.blending": ("blend", "panel"),
        "combicam.engine.config": ("ComputeConfig", "RunConfig"),
        "combicam.engine.evaluation.config": ("EvaluateConfig",),
        "combicam.engine.evaluation.evaluating": ("evaluate",),
        "combicam.engine.evaluation.judging": ("MetricSettings",),
        "combicam.engine.evaluation.results": ("Evaluation",),
        "combicam.engine.explainer": ("Explainer",),
        "combicam.engine.explanation": ("Explanation",),
        "combicam.engine.exporting": ("export",),
        "combicam.engine.geo.accuracy": ("Accuracy", "accuracy"),
        "combicam.engine.geo.density": ("prediction_density",),
        "combicam.engine.geo.distance": ("distance_km",),
        "combicam.engine.geo.geojson": ("write_geojson",),
        "combicam.engine.geo.geoparquet": ("write_geoparquet",),
        "combicam.engine.geo.influence": ("concept_influence",),
        "combicam.engine.making": ("make_explainer",),
        "combicam.engine.reading": ("OpenRun", "open_run"),
        "combicam.engine.report.writing": ("write_report",),
        "combicam.engine.runner": ("run",),
        "combicam.engine.shards": ("ShardData", "read_shard"),
        "combicam.engine.status": ("RunStatus", "run_status"),
        "combicam.engine.summary": ("RunSummary",),
        "combicam.engine.targets": ("Contrast", "contrast"),
        "combicam.engine.triton_repository": ("ServedModel", "export_triton_repository"),
        "combicam.engine.verifying": ("OutputError", "Verification"),
        "combicam.engine.webdataset": ("write_webdataset",),
        "combicam.errors": (
            "ArtifactError",
            "CombicamError",
            "DecodeError",
            "LayerError",
            "MissingExtra",
            "ModelError",
            "RunError",
            "TraceError",
        ),
        "combicam.export.cell_files": ("read_cells", "write_cells"),
        "combicam.export.cells": ("CellTable",),
        "combicam.export.classes": ("ClassTable",),
        "combicam.export.models": ("LoadedModel", "ModelConfig", "load_model"),
        "combicam.export.preprocess": ("Preprocess",),
        "combicam.export.spec": ("CamSpec",),
        "combicam.export.tokens": ("TokenGrid", "tokens"),
        "combicam.version": ("__version__",),
    },
)
