"""Stage 2: explain batches in memory, or stream millions of images through a run directory."""

from combicam.engine.batch_explainer import BatchExplainer
from combicam.engine.blending import blend, panel
from combicam.engine.config import ComputeConfig, RunConfig
from combicam.engine.explainer import Explainer
from combicam.engine.explanation import Explanation
from combicam.engine.exporting import export
from combicam.engine.making import make_explainer
from combicam.engine.runner import run, run_images
from combicam.engine.shards import ShardData, read_shard
from combicam.engine.stage_times import StageSeconds
from combicam.engine.summary import RunSummary
from combicam.engine.targets import Contrast, contrast
from combicam.engine.verifying import OutputError, Verification

__all__ = [
    "BatchExplainer",
    "ComputeConfig",
    "Contrast",
    "Explainer",
    "Explanation",
    "OutputError",
    "RunConfig",
    "RunSummary",
    "ShardData",
    "StageSeconds",
    "Verification",
    "blend",
    "contrast",
    "export",
    "make_explainer",
    "panel",
    "read_shard",
    "run",
    "run_images",
]
