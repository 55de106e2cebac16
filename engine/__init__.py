"""Stage 2: explain batches in memory, or stream millions of images through a run directory."""

from combicam.engine.batch_explainer import BatchExplainer
from combicam.engine.blending import blend, panel
from combicam.engine.config import RunConfig
from combicam.engine.explanation import Explanation
from combicam.engine.runner import run_images
from combicam.engine.shards import ShardData, read_shard
from combicam.engine.stage_times import StageSeconds
from combicam.engine.summary import RunSummary

__all__ = [
    "BatchExplainer",
    "Explanation",
    "RunConfig",
    "RunSummary",
    "ShardData",
    "StageSeconds",
    "blend",
    "panel",
    "read_shard",
    "run_images",
]
