"""Explain batches in memory, or stream millions of images into a run directory."""

from typing import TYPE_CHECKING

from combicam.lazy import make_lazy

if TYPE_CHECKING:
    from combicam.engine.drawing.blend import blend as blend
    from combicam.engine.drawing.blend import panel as panel
    from combicam.engine.explain.artifact_export import export as export
    from combicam.engine.explain.artifact_verify import OutputError as OutputError
    from combicam.engine.explain.artifact_verify import Verification as Verification
    from combicam.engine.explain.config import ComputeConfig as ComputeConfig
    from combicam.engine.explain.explainer import Explainer as Explainer
    from combicam.engine.explain.explanation import Explanation as Explanation
    from combicam.engine.explain.factory import make_explainer as make_explainer
    from combicam.engine.explain.protocol import BatchExplainer as BatchExplainer
    from combicam.engine.explain.targets import Contrast as Contrast
    from combicam.engine.explain.targets import Finer as Finer
    from combicam.engine.explain.targets import contrast as contrast
    from combicam.engine.explain.targets import finer as finer
    from combicam.engine.run.config import RunConfig as RunConfig
    from combicam.engine.run.open_run import read_shard as read_shard
    from combicam.engine.run.stage_times import StageSeconds as StageSeconds
    from combicam.engine.run.summary import RunSummary as RunSummary
    from combicam.engine.runner import run as run
    from combicam.engine.runner import run_images as run_images
    from combicam.engine.shards.files import ShardData as ShardData

__all__ = make_lazy(
    __name__,
    {
        "combicam.engine.explain.protocol": ("BatchExplainer",),
        "combicam.engine.drawing.blend": ("blend", "panel"),
        "combicam.engine.explain.config": ("ComputeConfig",),
        "combicam.engine.run.config": ("RunConfig",),
        "combicam.engine.explain.explainer": ("Explainer",),
        "combicam.engine.explain.explanation": ("Explanation",),
        "combicam.engine.explain.artifact_export": ("export",),
        "combicam.engine.explain.factory": ("make_explainer",),
        "combicam.engine.run.open_run": ("read_shard",),
        "combicam.engine.runner": ("run", "run_images"),
        "combicam.engine.shards.files": ("ShardData",),
        "combicam.engine.run.stage_times": ("StageSeconds",),
        "combicam.engine.run.summary": ("RunSummary",),
        "combicam.engine.explain.targets": ("Contrast", "Finer", "contrast", "finer"),
        "combicam.engine.explain.artifact_verify": ("OutputError", "Verification"),
    },
)
