"""Choose the maps to compare: those of several explainers of a model, and a run's stored ones."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from typing import Any

from tqdm import tqdm

from combicam.engine.evaluation.config import EvaluateConfig
from combicam.engine.explain.explainer import Explainer
from combicam.engine.explain.factory import make_explainer
from combicam.engine.explain.sessions import ModelSession
from combicam.engine.run.open_run import OpenRun
from combicam.errors import RunError
from combicam.export.spec import FORWARD_METHODS, LAYER_RULES, CamSpec

STORED = "stored"


def contestants(
    config: EvaluateConfig, run: OpenRun | None, specs: Mapping[str, CamSpec] | None = None
) -> tuple[Explainer, dict[str, Explainer]]:
    """An explainer whose model to evaluate, and name -> explainer of every map to compute.

    Args:
        config: methods, layers, normalize, model and compute are used.
        run: whose stored maps are measured too; its model must be that of ``config``.
        specs: name -> what to compute, instead of the methods of ``config``.

    Raises:
        ValueError: methods for an exported file, which has its own; or a network that takes no
            photos.
        RunError: a run of another model.
        CombicamError, FileNotFoundError: see :func:`~combicam.make_explainer`.
    """
    if config.model.is_artifact:
        if config.methods or specs:
            raise ValueError(
                f"evaluate: expected no methods with {config.model.model}, which has one fixed "
                f"method, got {config.methods}; give the original model"
            )
        first = make_explainer(config.model, None, config.compute)
        first.preprocess.check_photos("evaluate")
        made: dict[str, Explainer] = {} if run else {_name(first.spec): first}
    else:
        specs = _named(specs) if specs else _specs(config, with_default=run is None)
        lead = next(iter(specs.values())) if specs else replace(_of_run(run), targets=1)
        first = make_explainer(config.model, lead, _fitting(config, lead))
        first.preprocess.check_photos("evaluate")
        made = {}
        for name, spec in tqdm(
            specs.items(), unit="map", desc="prepare", leave=False, disable=not config.progress
        ):
            made[name] = another(first, spec) if made else first
    if run is not None:
        check_network(run, first)
    return first, made


def another(
    explainer: Explainer,
    spec: CamSpec,
    module: Any = None,
    input_size: tuple[int, int] | None = None,
) -> Explainer:
    """An explainer of the same model, or of ``module``, with another spec or at another size."""
    session = explainer.session
    if not isinstance(session, ModelSession):
        raise ValueError(
            "evaluate: expected a model, got an exported file, whose method and weights are "
            "fixed; give the original model"
        )
    preprocess = explainer.preprocess
    if input_size is not None:
        preprocess = replace(preprocess, input_size=input_size, resize="squash")
    return Explainer(
        session.module if module is None else module,
        dtype="tf32" if session.tf32 else None,  # which no weight shows
        backend=session.backend,
        keep_layers=session.keep_layers,
        chunk=session.chunk if spec.method in FORWARD_METHODS else None,
        preprocess=preprocess,
        classes=explainer.classes,
        **spec.to_dict(),
    )


def _specs(config: EvaluateConfig, with_default: bool) -> dict[str, CamSpec]:
    methods = config.methods or (("gradcam",) if with_default else ())
    specs: dict[str, CamSpec] = {}
    choices = (methods, config.layers, config.fuse, config.normalize)
    several = [len(config.fuse) > 1, len(config.normalize) > 1]
    for method, layers, fuse, normalize in product(*choices):
        chosen = layers if layers in LAYER_RULES else tuple(layers.split(","))
        spec = CamSpec(chosen, method, config.score, fuse=fuse, normalize=normalize)
        specs[_name(spec, *several)] = spec
    if len(specs) < math.prod(map(len, choices)):
        raise ValueError(f"evaluate: expected layers that can be told apart, got {config.layers}")
    return specs


def _named(specs: Mapping[str, CamSpec]) -> dict[str, CamSpec]:
    named = {word(name): spec for name, spec in specs.items()}
    if len(named) < len(specs):
        raise ValueError(f"evaluate: expected names that can be told apart, got {list(specs)}")
    return named


def _name(spec: CamSpec, with_fuse: bool = False, with_normalize: bool = False) -> str:
    """Name of a map in columns, such as ``gradcam_blocks``: letters, digits and underscores."""
    layers = spec.layers if isinstance(spec.layers, str) else "_".join(spec.layers)
    words = [spec.method, layers.replace("*", "all")]
    words += [spec.fuse] if with_fuse else []
    words += [spec.normalize] if with_normalize else []
    return word("_".join(words))


def word(name: str) -> str:
    """A map's name as it stands in columns."""
    return re.sub(r"\W+", "_", name.replace("+", "p"))


def _of_run(run: OpenRun | None) -> CamSpec:
    assert run is not None  # without a run there is a default method
    return run.spec


def _fitting(config: EvaluateConfig, spec: CamSpec) -> Any:
    if spec.method in FORWARD_METHODS:
        return config.compute
    return replace(config.compute, chunk=None)


def check_network(run: OpenRun, explainer: Explainer) -> None:
    """Check that a run was made with this explainer's model and preprocessing.

    Raises:
        RunError: weights or preprocessing differ.
    """
    earlier = run.fingerprint["explainer"]
    if earlier.get("crops"):
        raise RunError(
            f"evaluate: expected maps of single model inputs, got those of five crops in "
            f"{run.path}; give a run that was made without --crops five"
        )
    now = json.loads(json.dumps(explainer.fingerprint()))
    other = [key for key in ("weights", "preprocess") if earlier.get(key) != now[key]]
    if other:
        raise RunError(
            f"evaluate: expected the model that made {run.path}, got other "
            f"{' and '.join(other)}; give the run's --model, --checkpoint, --img-size, --resize "
            "and --amp-dtype"
        )
