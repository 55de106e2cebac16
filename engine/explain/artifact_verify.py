"""Compare an artifact with the model that it was exported from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from combicam.engine.explain.explainer import Explainer
from combicam.errors import ArtifactError, first_line
from combicam.export.trace.reference import eager_reference
from combicam.export.trace.trace import JointGraph, example_inputs

TINY = torch.finfo(torch.float32).tiny
TOLERANCES = {"float64": 1e-3, "float32": 1e-3, "tf32": 0.1, "float16": 0.1, "bfloat16": 0.3}


@dataclass(frozen=True)
class OutputError:
    """The error of one output against the reference.

    Attributes:
        name: of the output.
        max_abs, mean_abs: absolute difference; for ``classes``: by how much the reference's logit
            of the file's class is below that of the right class.
        typical_abs: the largest difference within an explanation, median over explanations.
        scale: largest absolute value of the reference; for ``classes``: of its logits.
    """

    name: str
    max_abs: float
    mean_abs: float
    typical_abs: float
    scale: float

    @property
    def relative(self) -> float:
        """The larger of typical and mean difference relative to ``scale``; has a tolerance.

        The maximum is not used: for a few images of any model, a ReLU whose input is zero up to
        rounding is on in one computation and off in the other. A real error shows in most images,
        or in the mean. For a single layer's map only the mean counts: errors of its pixels show in
        the heatmap.
        """
        worst = self.mean_abs
        if not self.name.startswith("map:"):
            worst = max(worst, self.typical_abs)  # either both are NaN or neither is
        return worst / max(self.scale, TINY)


@dataclass(frozen=True)
class Verification:
    """An artifact compared with its model, on images and batch sizes it was not traced with.

    Attributes:
        images: how many were compared.
        tolerance: largest accepted ``relative``.
        outputs: one entry per output of the file, in its order.
    """

    images: int
    tolerance: float
    outputs: tuple[OutputError, ...]

    @property
    def agrees(self) -> bool:
        """Whether every output is within the tolerance; NaN is not."""
        return all(output.relative <= self.tolerance for output in self.outputs)

    @property
    def max_heatmap_error(self) -> float:
        """Largest absolute difference of a heatmap's pixel."""
        return self._named("heatmaps").max_abs

    @property
    def mean_heatmap_error(self) -> float:
        """Mean absolute difference of the heatmaps' pixels."""
        return self._named("heatmaps").mean_abs

    @property
    def max_logit_error(self) -> float:
        """Largest difference of a logit, relative to the largest logit."""
        logits = self._named("logits")
        return logits.max_abs / max(logits.scale, TINY)

    def _named(self, name: str) -> OutputError:
        return next(output for output in self.outputs if output.name == name)

    def __str__(self) -> str:
        disagreeing = [o for o in self.outputs if not o.relative <= self.tolerance]
        return ", ".join(f"{o.name} {o.relative:.3g}" for o in disagreeing or self.outputs)


def verify_artifact(
    artifact: Explainer, joint: JointGraph, model: nn.Module, images: Tensor, tolerance: float
) -> Verification:
    """Compare the outputs of a file with those of its model.

    The first image is run alone, the rest in threes: batch sizes that were not traced. Where the
    file chooses the classes, and rounding makes it choose another, only logits are compared.

    Args:
        artifact: explainer of the file.
        joint, model: the exported graph, and the model it was traced from.
        images: float32 [N,C,H,W], normalised.
        tolerance: see :class:`Verification`.

    Raises:
        ArtifactError: the model cannot be run in float32, or the file cannot be run.
    """
    images = images.to(artifact.device)
    reference, execute = eager_reference(model, joint), artifact.session.execute
    ours: list[list[Tensor]] = []
    theirs: list[list[Tensor]] = []
    try:
        for batch in (images[:1], *images[1:].split(3)):
            if len(batch):
                inputs = [batch, *_targets(joint, batch)]
                ours.append(reference(inputs))
                theirs.append(execute(artifact.session.top)(inputs))
    except RuntimeError as error:
        raise ArtifactError(
            f"export: the file could not be compared ({_reason(error)}); check that the "
            "model runs in float32, or export without verifying"
        ) from error
    expected, actual = (
        [torch.cat(o) for o in zip(*parts, strict=True)] for parts in (ours, theirs)
    )
    errors = _errors(joint.output_names, expected, actual)
    return Verification(len(images), tolerance, errors)


def _reason(error: RuntimeError) -> str:
    """TorchScript gives the reason in the last line, everything else in the first."""
    lines = str(error).strip().splitlines()
    return lines[-1] if lines and "TorchScript" in lines[0] else first_line(error)


def _targets(joint: JointGraph, images: Tensor) -> list[Tensor]:
    """Random weights, of both signs for every second image; or the best classes, and for every
    second image random numbers or ranks."""
    targets = list(example_inputs(joint, len(images))[1:])
    generator = torch.Generator().manual_seed(len(images))
    if joint.signature.target_input == "weights":
        weights = torch.rand(targets[0].shape, generator=generator)
        weights[1::2] = 2 * weights[1::2] - 1
        targets = [weights.to(targets[0])]
    elif targets:
        given = targets[0][1::2]
        n = joint.signature.classes
        given.copy_(torch.randint(-n, n, given.shape, generator=generator))
    return targets


def _errors(
    names: Sequence[str], expected: Sequence[Tensor], actual: Sequence[Tensor]
) -> tuple[OutputError, ...]:
    logits, classes = expected[0].float(), expected[1]
    same = (classes == actual[1]).to(logits.device)
    outputs = []
    for name, ours, theirs in zip(names, expected, actual, strict=True):
        if name == "classes":
            gap = logits.gather(1, ours.clamp_min(0)) - logits.gather(1, theirs.clamp_min(0))
            outputs.append(_error(name, gap, torch.zeros_like(gap), logits))
        elif name == "logits":
            outputs.append(_error(name, theirs, ours, ours))
        else:  # [B,K,...], of the explained classes
            outputs.append(_error(name, theirs[same], ours[same], ours[same]))
    return tuple(outputs)


def _error(name: str, actual: Tensor, expected: Tensor, scale: Tensor) -> OutputError:
    if not expected.numel():  # an empty comparison is not an agreement
        return OutputError(name, torch.nan, torch.nan, torch.nan, 0.0)
    difference = (actual.double() - expected.double()).abs().reshape(len(expected), -1)
    worst = difference.amax(1).sort().values  # NaN sorts last
    typical = worst[len(worst) // 2] if worst.isfinite().all() else worst[-1]
    return OutputError(
        name,
        float(difference.max()),
        float(difference.mean()),
        float(typical),
        float(scale.abs().max()),
    )
