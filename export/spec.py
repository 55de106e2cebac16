"""Define ``CamSpec``: what is computed, but not how."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

from combicam.export.tokens import TokenGrid, tokens
from combicam.kernels.combine import FUSES, NORMALIZES
from combicam.kernels.weigh import EPS, METHODS

# Methods of the head, and of second derivatives.
GRAPH_METHODS = (*METHODS, "shapleycam")
# Methods without gradients: a forward pass per channel, so not a single graph.
FORWARD_METHODS = ("scorecam", "ablationcam")
ALL_METHODS = (*GRAPH_METHODS, *FORWARD_METHODS)
SCORES = ("logit", "prob", "logprob", "sigmoid", "logsigmoid")
MASKS = ("image", "grid")
SMOOTHS = ("none", "flips", "flips+intensities")
FINER_WEIGHTS = ("softmax", "mean")
# Scores that tell similar classes apart by their logits.
FINER_SCORES = ("logit", "logprob")
LAYER_RULES = ("blocks", "stages", "last")

PRESETS: dict[str, dict[str, Any]] = {
    "combicam": {},
    "combicam+": {
        "layers": "stages",
        "method": "layercam",
        "fuse": "gated",
        "normalize": "layer+map",
    },
    "pytorch-grad-cam": {
        "score": "logit",
        "fuse": "mean",
        "normalize": "grid+map",
        "align_corners": False,
        "eps": 1e-7,
    },
    "torchcam": {
        "score": "logit",
        "fuse": "max",
        "normalize": "grid",
        "align_corners": False,
        "eps": 1e-8,
        "finer_alpha": 0.6,
        "finer_weights": "mean",
    },
}

# Methods that other libraries compute differently from the papers.
METHOD_CHANGES: dict[tuple[str, str], dict[str, Any]] = {
    ("pytorch-grad-cam", "gradcam++"): {"method_eps": 1e-6},
    ("pytorch-grad-cam", "xgradcam"): {"method_eps": 1e-7},
    ("pytorch-grad-cam", "fullgrad"): {"fuse": "sum", "normalize": "map"},
    ("torchcam", "scorecam"): {"masks": "grid"},
}

OTHER_FORMULAS = {
    ("torchcam", "gradcam++"): "computed with sum(G^3 A) for G^3 sum(A)",
    ("torchcam", "layercam"): "scaled by tanh before layers are fused",
}


def preset_values(name: str, **changes: Any) -> dict[str, Any]:
    """Fields of a preset, overridden by ``changes``.

    Raises:
        ValueError: an unknown preset, or a method that the library computes by another formula.
    """
    if name not in PRESETS:
        raise ValueError(f"preset: expected one of {list(PRESETS)}, got {name!r}")
    method = changes.get("method", "gradcam")
    if (name, method) in OTHER_FORMULAS:
        raise ValueError(
            f"preset: {name}'s {method} is {OTHER_FORMULAS[name, method]}, another formula than "
            "the paper's, and is not reproduced; choose another method or preset"
        )
    return {**PRESETS[name], **METHOD_CHANGES.get((name, method), {}), **changes}


def check_choice(operation: str, what: str, value: str, allowed: Sequence[str]) -> None:
    """Check that a value is one of the allowed choices.

    Args:
        operation: prefix of the error message.
        what: name of the argument.
        value: of the argument.
        allowed: the choices.

    Raises:
        ValueError: it is not; the message lists the choices.
    """
    if value not in allowed:
        raise ValueError(f"{operation}: expected {what} in {list(allowed)}, got {value!r}")


def _token_grid(value: Any) -> TokenGrid | None:
    if value is None:
        return None
    if not isinstance(value, (tuple, list)) or len(value) != 3:
        raise TypeError(
            f"CamSpec: expected tokens as combicam.tokens(h, w, prefix) or None, got {value!r}"
        )
    return tokens(*value)


@dataclass(frozen=True)
class CamSpec:
    """What is computed: layers, method, score, targets and fusion.

    The defaults are Combi-CAM (arXiv 2603.24117): Grad-CAM of every block, unnormalised, upsampled
    with aligned corners, summed, then min-max normalised. ``logprob`` gives the same map as the
    paper's softmax probability, but does not underflow.

    Args:
        layers: ``blocks``, ``stages``, ``last``, or module names and globs.
        method: ``gradcam``, ``gradcam++``, ``xgradcam``, ``hirescam``, ``elementwise``,
            ``layercam``, ``eigencam`` or ``eigengradcam`` (formulas at
            ``combicam.kernels.weigh_reference``); ``shapleycam``
            (:func:`~combicam.export.trace.shapley.shapley_gradients`); ``fullgrad``, whose layers
            are the image and all that have a bias
            (:func:`~combicam.export.trace.fullgrad.bias_layers`), so that ``layers`` stays at its
            default; or ``scorecam`` or
            ``ablationcam``, which need a forward pass per channel instead of gradients
            (:class:`combicam.engine.explain.scorecam.ScoreCam`,
            :class:`combicam.engine.explain.ablationcam.AblationCam`).
        score: of the target class: ``logit``; ``prob`` or ``logprob`` of a softmax; ``sigmoid`` or
            ``logsigmoid``, of labels that do not exclude each other. For a network of one logit,
            ``prob`` and ``logprob`` mean ``sigmoid`` and ``logsigmoid``.
        targets: K, number of best classes to explain if a call does not give targets.
        fuse: ``sum``, ``mean``, ``max``, ``product``; ``gated``: the sum where the last layer's
            map is high, both min-max normalised; ``none`` keeps one map per layer.
        normalize: where min-max is applied: to the fused ``map``; to every ``layer`` at image size;
            to every layer on its own ``grid``; ``layer+map``, ``grid+map``; or ``none``.
        align_corners: convention of the bilinear upsampling.
        layer_weights: one factor per layer, in order of execution; empty for all 1.
        eps: added to every min-max divisor, like in other libraries; 0 is exact.
        method_eps: added to the divisor inside ``gradcam++``, ``xgradcam`` and the masks of
            ``scorecam``.
        tokens: (h, w, prefix) of a transformer's token grid, see :func:`~combicam.tokens`; None
            detects it automatically.
        masks: of ``scorecam``: ``image``: channels are upsampled with aligned corners, then
            min-max normalised (the order of the paper and pytorch-grad-cam); ``grid``: normalised
            on their own grid, then upsampled without aligned corners (torchcam).
        finer: explain why the target class and not the classes whose logits are most similar, so
            many of them (Finer-CAM, arXiv 2501.11309); 0: the class alone. Needs the score
            ``logit`` or ``logprob``. Formula at
            :func:`~combicam.export.trace.scores.finer_scores`.
        finer_alpha: share of the similar classes' score that is subtracted.
        finer_weights: of the similar classes: ``softmax`` of their logits (the authors' code,
            pytorch-grad-cam) or their ``mean`` (torchcam).
        smooth: mean of the heatmaps of augmented views: ``flips``: of the image and its mirror
            image (2 views); ``flips+intensities``: also of both with values times 0.9 and 1.1
            (6 views; pytorch-grad-cam's ``aug_smooth``); ``none``. The cost is multiplied by the
            number of views; scores and classes are those of the image itself. Layer maps and
            ``ranges`` are means over views, too.

    Raises:
        ValueError, TypeError: an invalid value.
    """

    layers: str | tuple[str, ...] = "blocks"
    method: str = "gradcam"
    score: str = "logprob"
    targets: int = 1
    fuse: str = "sum"
    normalize: str = "map"
    align_corners: bool = True
    layer_weights: tuple[float, ...] = ()
    eps: float = 0.0
    method_eps: float = EPS
    tokens: tuple[int, int, int] | None = None
    masks: str = "image"
    finer: int = 0
    finer_alpha: float = 1.0
    finer_weights: str = "softmax"
    smooth: str = "none"

    def __post_init__(self) -> None:
        layers = self.layers
        if isinstance(layers, str):
            layers = layers if layers in LAYER_RULES else (layers,)
        else:
            layers = tuple(layers)
            if not layers or not all(isinstance(name, str) for name in layers):
                raise TypeError(
                    f"CamSpec: expected layers as {list(LAYER_RULES)} or a non-empty list of "
                    f"module names, got {self.layers!r}"
                )
        object.__setattr__(self, "layers", layers)
        object.__setattr__(self, "layer_weights", tuple(float(w) for w in self.layer_weights))
        object.__setattr__(self, "tokens", _token_grid(self.tokens))
        for name, allowed in (
            ("method", ALL_METHODS),
            ("score", SCORES),
            ("fuse", FUSES),
            ("normalize", NORMALIZES),
            ("masks", MASKS),
            ("finer_weights", FINER_WEIGHTS),
            ("smooth", SMOOTHS),
        ):
            check_choice("CamSpec", name, getattr(self, name), allowed)
        if self.method == "fullgrad" and self.layers != "blocks":
            raise ValueError(
                "CamSpec: expected no layers with method='fullgrad', which reads the image and "
                f"every layer with a bias, got {self.layers!r}; leave layers at its default"
            )
        if isinstance(self.targets, bool) or not isinstance(self.targets, int) or self.targets < 1:
            raise ValueError(f"CamSpec: expected targets as an int >= 1, got {self.targets!r}")
        if isinstance(self.finer, bool) or not isinstance(self.finer, int) or self.finer < 0:
            raise ValueError(f"CamSpec: expected finer as an int >= 0, got {self.finer!r}")
        if self.finer and self.score not in FINER_SCORES:
            raise ValueError(
                f"CamSpec: expected score in {list(FINER_SCORES)} with finer, which compares "
                f"logits, got {self.score!r}"
            )
        for name in ("eps", "method_eps", "finer_alpha"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"CamSpec: expected {name} >= 0, got {getattr(self, name)!r}")

    @classmethod
    def preset(cls, name: str, **changes: Any) -> Self:
        """The spec that reproduces ``combicam``, ``pytorch-grad-cam`` or ``torchcam``."""
        return cls(**preset_values(name, **changes))

    @property
    def unit_range(self) -> bool:
        """Whether heatmaps are guaranteed to lie in [0, 1]."""
        if self.normalize.endswith("map") or self.fuse == "gated":
            return True
        weights_fit = all(0 <= w <= 1 for w in self.layer_weights)
        return self.normalize != "none" and self.fuse != "sum" and weights_fit

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`to_dict`; unknown fields are refused.

        Raises:
            ValueError: fields of a newer version.
        """
        unknown = set(values) - {f.name for f in fields(cls)}
        if unknown:
            raise ValueError(
                f"CamSpec: expected fields of this version, got also {sorted(unknown)}; "
                "update combicam"
            )
        known = dict(values)
        if not isinstance(known.get("layers", ""), str):
            known["layers"] = tuple(known["layers"])
        return cls(**known)

    @classmethod
    def read(cls, source: str | Path) -> Self:
        """A preset by its name, or a JSON file of :meth:`to_json`, such as ``recommend`` writes.

        Raises:
            ValueError: neither, or a file that holds no spec.
        """
        if str(source) in PRESETS:
            return cls.preset(str(source))
        try:
            values = json.loads(Path(source).read_text(encoding="utf-8"))
            return cls.from_dict(values)
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise ValueError(
                f"spec: expected one of {list(PRESETS)}, or a JSON file that 'combicam recommend' "
                f"wrote, got {str(source)!r} ({error})"
            ) from error

    def overriding(self, other: CamSpec) -> CamSpec:
        """``other``, with the fields that differ from the defaults here."""
        usual = type(self)()
        changed = {f.name: getattr(self, f.name) for f in fields(self)}
        changed = {k: v for k, v in changed.items() if v != getattr(usual, k)}
        return replace(other, **changed)

    def to_json(self) -> str:
        """One line of JSON with sorted keys."""
        return json.dumps(self.to_dict(), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse of :meth:`to_json`."""
        return cls.from_dict(json.loads(text))
