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
    from combicam.allocator import tune_allocator as tune_allocator
    from combicam.engine.drawing.blend import blend as blend
    from combicam.engine.drawing.blend import panel as panel
    from combicam.engine.evaluation.config import EvaluateConfig as EvaluateConfig
    from combicam.engine.evaluation.evaluate import evaluate as evaluate
    from combicam.engine.evaluation.metrics import MetricSettings as MetricSettings
    from combicam.engine.evaluation.recommend import Recommendation as Recommendation
    from combicam.engine.evaluation.recommend import RecommendConfig as RecommendConfig
    from combicam.engine.evaluation.recommend import recommend as recommend
    from combicam.engine.evaluation.results import Evaluation as Evaluation
    from combicam.engine.explain.artifact_export import export as export
    from combicam.engine.explain.artifact_verify import OutputError as OutputError
    from combicam.engine.explain.artifact_verify import Verification as Verification
    from combicam.engine.explain.config import ComputeConfig as ComputeConfig
    from combicam.engine.explain.explainer import Explainer as Explainer
    from combicam.engine.explain.explanation import Explanation as Explanation
    from combicam.engine.explain.factory import make_explainer as make_explainer
    from combicam.engine.explain.targets import Contrast as Contrast
    from combicam.engine.explain.targets import Finer as Finer
    from combicam.engine.explain.targets import contrast as contrast
    from combicam.engine.explain.targets import finer as finer
    from combicam.engine.geo.accuracy import Accuracy as Accuracy
    from combicam.engine.geo.density import prediction_density as prediction_density
    from combicam.engine.geo.distance import distance_km as distance_km
    from combicam.engine.outputs.accuracy import accuracy as accuracy
    from combicam.engine.outputs.concept_influence import concept_influence as concept_influence
    from combicam.engine.outputs.geojson import write_geojson as write_geojson
    from combicam.engine.outputs.geoparquet import write_geoparquet as write_geoparquet
    from combicam.engine.outputs.webdataset import write_webdataset as write_webdataset
    from combicam.engine.report.report import write_report as write_report
    from combicam.engine.run.config import RunConfig as RunConfig
    from combicam.engine.run.open_run import OpenRun as OpenRun
    from combicam.engine.run.open_run import open_run as open_run
    from combicam.engine.run.open_run import read_shard as read_shard
    from combicam.engine.run.status import RunStatus as RunStatus
    from combicam.engine.run.status import run_status as run_status
    from combicam.engine.run.summary import RunSummary as RunSummary
    from combicam.engine.runner import run as run
    from combicam.engine.serving.triton_repository import ServedModel as ServedModel
    from combicam.engine.serving.triton_repository import (
        export_triton_repository as export_triton_repository,
    )
    from combicam.engine.serving.web_site import WebSite as WebSite
    from combicam.engine.serving.web_site import export_web_site as export_web_site
    from combicam.engine.shards.files import ShardData as ShardData
    from combicam.errors import ArtifactError as ArtifactError
    from combicam.errors import CombicamError as CombicamError
    from combicam.errors import DecodeError as DecodeError
    from combicam.errors import LayerError as LayerError
    from combicam.errors import MissingExtra as MissingExtra
    from combicam.errors import ModelError as ModelError
    from combicam.errors import RunError as RunError
    from combicam.errors import TraceError as TraceError
    from combicam.export.classes.cell_files import read_cells as read_cells
    from combicam.export.classes.cell_files import write_cells as write_cells
    from combicam.export.classes.cells import CellTable as CellTable
    from combicam.export.classes.classes import ClassTable as ClassTable
    from combicam.export.formats.runtimes import Concern as Concern
    from combicam.export.formats.runtimes import RuntimeCheck as RuntimeCheck
    from combicam.export.formats.runtimes import check_file as check_file
    from combicam.export.models.models import LoadedModel as LoadedModel
    from combicam.export.models.models import ModelConfig as ModelConfig
    from combicam.export.models.models import load_model as load_model
    from combicam.export.preprocess import Preprocess as Preprocess
    from combicam.export.spec import CamSpec as CamSpec
    from combicam.export.tokens import TokenGrid as TokenGrid
    from combicam.export.tokens import tokens as tokens

__all__ = make_lazy(
    __name__,
    {
        "combicam.allocator": ("tune_allocator",),
        "combicam.engine.drawing.blend": ("blend", "panel"),
        "combicam.engine.explain.config": ("ComputeConfig",),
        "combicam.engine.run.config": ("RunConfig",),
        "combicam.engine.evaluation.config": ("EvaluateConfig",),
        "combicam.engine.evaluation.evaluate": ("evaluate",),
        "combicam.engine.evaluation.metrics": ("MetricSettings",),
        "combicam.engine.evaluation.recommend": (
            "RecommendConfig",
            "Recommendation",
            "recommend",
        ),
        "combicam.engine.evaluation.results": ("Evaluation",),
        "combicam.engine.explain.explainer": ("Explainer",),
        "combicam.engine.explain.explanation": ("Explanation",),
        "combicam.engine.explain.artifact_export": ("export",),
        "combicam.engine.geo.accuracy": ("Accuracy",),
        "combicam.engine.outputs.accuracy": ("accuracy",),
        "combicam.engine.geo.density": ("prediction_density",),
        "combicam.engine.geo.distance": ("distance_km",),
        "combicam.engine.outputs.geojson": ("write_geojson",),
        "combicam.engine.outputs.geoparquet": ("write_geoparquet",),
        "combicam.engine.outputs.concept_influence": ("concept_influence",),
        "combicam.engine.explain.factory": ("make_explainer",),
        "combicam.engine.run.open_run": ("OpenRun", "open_run", "read_shard"),
        "combicam.engine.report.report": ("write_report",),
        "combicam.engine.runner": ("run",),
        "combicam.engine.shards.files": ("ShardData",),
        "combicam.engine.run.status": ("RunStatus", "run_status"),
        "combicam.engine.run.summary": ("RunSummary",),
        "combicam.engine.explain.targets": ("Contrast", "Finer", "contrast", "finer"),
        "combicam.engine.serving.triton_repository": ("ServedModel", "export_triton_repository"),
        "combicam.engine.serving.web_site": ("WebSite", "export_web_site"),
        "combicam.engine.explain.artifact_verify": ("OutputError", "Verification"),
        "combicam.engine.outputs.webdataset": ("write_webdataset",),
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
        "combicam.export.classes.cell_files": ("read_cells", "write_cells"),
        "combicam.export.classes.cells": ("CellTable",),
        "combicam.export.classes.classes": ("ClassTable",),
        "combicam.export.formats.runtimes": ("Concern", "RuntimeCheck", "check_file"),
        "combicam.export.models.models": ("LoadedModel", "ModelConfig", "load_model"),
        "combicam.export.preprocess": ("Preprocess",),
        "combicam.export.spec": ("CamSpec",),
        "combicam.export.tokens": ("TokenGrid", "tokens"),
        "combicam.version": ("__version__",),
    },
)
