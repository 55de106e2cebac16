"""Stage 2: explain batches in memory, or stream millions of images through a run directory."""

from typing import TYPE_CHECKING

from combicam.lazy import make_lazy

if TYPE_CHECKING:
    from combicam.engine.batch_explainer import BatchExplainer as BatchExplainer
    from combicam.engine.blending import blend as blend
    from combicam.engine.blending import panel as panel
    from combicam.engine.config import ComputeConfig as ComputeConfig
    from combicam.engine.config import RunConfig as RunConfig
    from combicam.engine.explainer import Explainer as Explainer
    from combicam.engine.explanation import Explanation as Explanation
    from combicam.engine.exporting import export as export
    from combicam.engine.making import make_explainer as make_explainer
    from combicam.engine.runner import run as run
    from combicam.engine.runner import run_images as run_images
    from combicam.engine.shards import ShardData as ShardData
    from combicam.engine.shards import read_shard as read_shard
    from combicam.engine.stage_times import StageSeconds as StageSeconds
    from combicam.engine.summary import RunSummary as RunSummary
    from combicam.engine.targets import Contrast as Contrast
    from combicam.engine.targets import contrast as contrast
    from combicam.engine.verifying import OutputError as OutputError
    from combicam.engine.verifying import Verification as Verification

__all__ = make_lazy(
    __name__,
    {
        "combicam.engine.batch_explainer": ("BatchExplainer",),
        "combicam.engine.blending": ("blend", "panel"),
        "combicam.engine.config": ("ComputeConfig", "RunConfig"),
        "combicam.engine.explainer": ("Explainer",),
        "combicam.engine.explanation": ("Explanation",),
        "combicam.engine.exporting": ("export",),
        "combicam.engine.making": ("make_explainer",),
        "combicam.engine.runner": ("run", "run_images"),
        "combicam.engine.shards": ("ShardData", "read_shard"),
        "combicam.engine.stage_times": ("StageSeconds",),
        "combicam.engine.summary": ("RunSummary",),
        "combicam.engine.targets": ("Contrast", "contrast"),
        "combicam.engine.verifying": ("OutputError", "Verification"),
    },
)
