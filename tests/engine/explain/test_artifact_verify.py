"""Files against their network: what is refused, what is kept, and what is said about it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from cam_oracle import calibrated, combi_cam
from torch import Tensor, nn

from combicam import ArtifactError, Explainer, OutputError, Verification, cli, export
from combicam.engine.explain import artifact_export as exporting
from combicam.engine.explain.artifact_export import VERIFY_IMAGES, natural_noise
from combicam.engine.explain.artifact_verify import verify_artifact
from combicam.engine.explain.sessions import Request
from combicam.export.trace.reference import eager_reference

SIZE = (33, 40)


class Small(nn.Module):
    """Two convolutions, a batch norm, and a pool whose sum no float16 holds."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, 1, 1),
            nn.ReLU(),
        )
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(16, 5)
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.pool(self.body(x) * self.gain).flatten(1)
        logits: Tensor = self.head(pooled / self.gain)
        return logits


@pytest.fixture(scope="module")
def small() -> nn.Module:
    return calibrated(Small(), SIZE)


def make(model: nn.Module, **changes: Any) -> Explainer:
    return Explainer(model, SIZE, layers=["body.2", "body.4"], **changes)


def checked(explainer: Explainer, other: Explainer, images: int = 8) -> Verification:
    """``other`` in the place of the file of ``explainer``."""
    joint, module = explainer.session.joint(explainer.session.top), explainer.session.module  # type: ignore[attr-defined]
    return verify_artifact(other, joint, module, natural_noise(images, SIZE), 1e-3)


def test_reference_is_the_network_by_autograd_in_float32(small: nn.Module) -> None:
    """It agrees with the oracle of the tests, also for a half-precision explainer's weights."""
    images = natural_noise(3, SIZE, seed=7)
    for dtype, bound in ((None, 1e-5), ("bfloat16", 1e-5)):
        explainer = make(small, dtype=dtype)
        session: Any = explainer.session
        reference = eager_reference(session.module, session.joint(session.top))
        with torch.inference_mode():
            _, classes, _, heatmaps, _ = reference([images, torch.full((3, 1), -1)])
        rounded = make(small, dtype=dtype).session.module.double()  # type: ignore[attr-defined]
        expected = combi_cam(rounded, ["body.2", "body.4"], images.double(), classes[:, 0])
        assert (heatmaps[:, 0] - expected).abs().max() < bound
        assert next(session.module.parameters()).dtype == getattr(torch, dtype or "float32")


def test_what_agrees(small: nn.Module) -> None:
    explainer = make(small, targets=2, keep_layers=True)
    found = checked(explainer, explainer, images=5)
    assert found.agrees and found.images == 5
    names = [o.name for o in found.outputs]
    assert names == [
        "logits",
        "classes",
        "scores",
        "heatmaps",
        "ranges",
        "map:body.2",
        "map:body.4",
    ]
    heatmap = found.outputs[3]
    assert 0 < heatmap.mean_abs < heatmap.typical_abs <= heatmap.max_abs < 1e-4
    assert heatmap.scale == 1 and found.max_heatmap_error == heatmap.max_abs


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"method": "hirescam"}, "heatmaps"),
        ({"align_corners": False}, "heatmaps"),
        ({"score": "logit"}, "ranges"),
        ({"normalize": "none"}, "heatmaps"),
    ],
)
def test_what_computes_something_else_disagrees(
    small: nn.Module, changes: dict[str, Any], wrong: str
) -> None:
    found = checked(make(small), make(small, **changes))
    assert not found.agrees and wrong in str(found)


class Tampered:
    """A session whose answers are changed on the way."""

    def __init__(self, explainer: Explainer, change: Any) -> None:
        self.device, self.top = explainer.device, explainer.session.top
        self.session, self.inner, self.change = self, explainer.session, change

    def execute(self, request: Any) -> Any:
        execute = self.inner.execute(request)
        return lambda inputs: self.change([o.clone() for o in execute(inputs)])


def test_one_image_beyond_rounding_is_borne_but_not_a_wrong_one(small: nn.Module) -> None:
    def one_pixel(outputs: list[Tensor]) -> list[Tensor]:
        if len(outputs[0]) == 1:
            outputs[3][0, 0, 5, 5] += 0.02
        return outputs

    def whole_image(outputs: list[Tensor]) -> list[Tensor]:
        if len(outputs[0]) == 1:
            outputs[3] = 1 - outputs[3]
        return outputs

    def nan(outputs: list[Tensor]) -> list[Tensor]:
        outputs[4][-1, 0, 0] = torch.nan
        return outputs

    def burnt_in(outputs: list[Tensor]) -> list[Tensor]:
        outputs[3][1:] = outputs[3][:1]
        return outputs

    def first_class(outputs: list[Tensor]) -> list[Tensor]:
        outputs[1].zero_()
        return outputs

    explainer = make(small)
    verdicts = {}
    for change in (one_pixel, whole_image, nan, burnt_in, first_class):
        found = checked(explainer, Tampered(explainer, change))  # type: ignore[arg-type]
        verdicts[change.__name__] = found.agrees
    assert verdicts == {
        "one_pixel": True,
        "whole_image": False,
        "nan": False,
        "burnt_in": False,
        "first_class": False,
    }


class ClampedWeights(Tampered):
    """A session over region weights that forgets the classes that count against."""

    def __init__(self, explainer: Explainer, request: Request, lowest: float) -> None:
        super().__init__(explainer, None)
        self.top, self.lowest = request, lowest

    def execute(self, request: Any) -> Any:
        execute = self.inner.execute(request)
        return lambda inputs: execute([inputs[0], inputs[1].clamp_min(self.lowest)])


def test_weights_of_both_signs_are_tried(small: nn.Module) -> None:
    explainer, request = make(small), Request("weights", 1)
    session: Any = explainer.session
    joint, images = session.joint(request), natural_noise(8, SIZE)
    verdicts = []
    for lowest in (-1.0, 0.0):
        other: Any = ClampedWeights(explainer, request, lowest)
        found = verify_artifact(other, joint, session.module, images, 1e-3)
        verdicts.append((found.agrees, "heatmaps" in str(found)))
    assert verdicts[0][0] and verdicts[1] == (False, True)


def test_another_class_of_the_same_logit_is_no_error() -> None:
    """Ties are decided by rounding; nothing that is compared depends on them."""
    model = Small()
    nn.init.zeros_(model.head.weight)
    nn.init.zeros_(model.head.bias)
    explainer = make(model)

    def other(outputs: list[Tensor]) -> list[Tensor]:
        outputs[1][0] = 4 - outputs[1][0]
        return outputs

    found = checked(explainer, Tampered(explainer, other))  # type: ignore[arg-type]
    assert found.outputs[1] == OutputError("classes", 0, 0, 0, 0)


def test_disagreement_is_refused_or_kept_on_demand(
    small: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "small.ts"
    explainer, other = make(small), make(small, method="hirescam")
    write = exporting.write_artifact

    def wrong(_joint: Any, *rest: Any) -> None:
        session: Any = other.session
        write(session.joint(session.top), *rest)

    monkeypatch.setattr(exporting, "write_artifact", wrong)
    with pytest.raises(ArtifactError, match=r"within 0\.001 .* heatmaps .*nothing was written"):
        export(explainer, path)
    assert not list(tmp_path.iterdir())
    found = export(explainer, path, allow_disagreement=True, verify=2)
    assert found is not None and not found.agrees and found.images == 2 and path.is_file()
    assert export(explainer, path, verify=0) is None is export(explainer, path, verify=False)
    lenient = export(explainer, path, tolerance=math.inf, verify=True)
    assert lenient is not None and lenient.agrees and lenient.images == VERIFY_IMAGES
    with pytest.raises(ValueError, match="verify >= 0"):
        export(explainer, path, verify=-1)


def test_command_line_shows_errors_and_rewrites(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "small_network.py").write_text(
        "import torch, combicam\nfrom torch import nn\n"
        "def build():\n"
        "    torch.manual_seed(0)\n"
        "    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1),\n"
        "                        nn.Flatten(), nn.Linear(4, 3))\n"
        "    return combicam.LoadedModel(net, combicam.Preprocess((24, 24)), 'small')\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    command = ["export", "-m", "small_network:build", "-o", "small.ts"]
    cli.main([*command, "--verbose", "--verify", "3"])
    shown = capsys.readouterr()
    rows = {line.split("  ")[1].strip(): line for line in shown.out.splitlines()}
    assert "3 images" in rows["compared"] and "tolerance 0.001" in rows["compared"]
    for name in ("logit", "class", "score", "heatmap", "range"):
        assert " max, " in rows[f"{name} error"] and " mean " in rows[f"{name} error"]
    rewrites = [line.split(":")[0] for line in shown.err.splitlines() if " nodes" in line]
    assert {"ConstantFolding", "HeadLowering", "CommonSubexpressionElimination"} <= set(rewrites)
    cli.main([*command, "--verify", "0"])
    shown = capsys.readouterr()
    assert "error" not in shown.out and " nodes" not in shown.err
    command += ["--amp-dtype", "bfloat16", "--tolerance", "1e-9"]
    with pytest.raises(SystemExit, match="--force"):
        cli.main(command)
    capsys.readouterr()
    cli.main([*command, "--force"])
    assert "kept a file that disagrees" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("suffix", [".onnx", ".ts"])
def test_half_precision_sums_in_float32(suffix: str, dtype: str, tmp_path: Path) -> None:
    """The pool's sum is far beyond float16's 65504, its mean is not."""
    explainer = make(calibrated(Small(gain=2000.0), SIZE), dtype=dtype)
    if (suffix, dtype) == (".onnx", "bfloat16"):
        with pytest.raises(ValueError, match=r"bfloat16 for \.onnx, .* write \.ts or \.pt2"):
            export(explainer, tmp_path / "small.onnx")
        with pytest.raises(ValueError, match="float16"):
            make(calibrated(Small(), SIZE), dtype=dtype, backend="onnxruntime")
        return
    found = export(explainer, tmp_path / f"small{suffix}")
    assert found is not None and found.agrees
    for batch in (1, 3, 8):
        loaded = Explainer.load(tmp_path / f"small{suffix}")
        answer = loaded(natural_noise(batch, SIZE, seed=batch))
        assert answer.heatmaps.dtype == answer.logits.dtype == torch.float32
        assert answer.logits.isfinite().all() and not answer.flat.any()
