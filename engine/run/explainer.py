"""Make the explainer that a run's configuration names."""

from __future__ import annotations

from dataclasses import replace

from combicam.engine.explain.explainer import Explainer
from combicam.engine.explain.factory import make_explainer
from combicam.engine.explain.sessions import Request
from combicam.engine.explain.streams import shared_cores
from combicam.engine.geo.five_crop import FiveCropExplainer
from combicam.engine.geo.location_target import read_location_target
from combicam.engine.run.config import RunConfig


def make_run_explainer(config: RunConfig) -> Explainer | FiveCropExplainer:
    """The explainer that a run's configuration names; the same in every process of the run.

    Raises:
        CombicamError, ValueError, FileNotFoundError: see
            :func:`~combicam.engine.explain.factory.make_explainer` and
            :class:`~combicam.engine.geo.five_crop.FiveCropExplainer`.
    """
    compute = config.compute
    if not config.distribution.is_local:
        # Workers explain; a compiled package can only be loaded for its own device.
        if not config.model.model.endswith(".pt2"):
            compute = replace(compute, device="cpu")
    cam = config.cam
    if config.explain and not config.model.is_artifact:
        cam = replace(cam, targets=len(config.explain))
    with shared_cores(compute.streams or 1):
        explainer = make_explainer(
            config.model, cam, compute, keep_layers=config.storage.store == "layers"
        )
    five = FiveCropExplainer(explainer) if config.crops == "five" else None
    if (target := read_location_target(config.explain, explainer)) is not None:
        # Traces now, and fails now if an artifact takes other targets.
        explainer.session.execute(Request(target.kind, len(target.words)))
    elif five is not None:
        explainer.session.execute(Request("classes", explainer.spec.targets))
    return five or explainer
