"""Score-CAM: against a computation by hand, channel by channel, and against other libraries."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cam_oracle import unit
from torch import Tensor, nn

import combicam
from combicam import Explainer, TraceError
from combicam.cli import main
from combicam.engine.explain.sessions import ModelSession

SIZE = (24, 32)
LAYERS = ("low", "high")


class Tiny(nn.Module):
    """Two layers of different resolution; the last channel of the first one is flat."""

    def __init__(self) -> None:
        super().__init__()
        self.low = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.ReLU(inplace=True))
        self.high = nn.Sequential(nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.high(self.low(x)))
        logits: Tensor = self.head(x.flatten(2).std(2))
        return logits


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    model = Tiny()
    conv, norm = model.low[0], model.high[1]
    assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
    with torch.no_grad():
        conv.weight[-1], conv.bias[-1] = 0, 0.7  # type: ignore[index]
        norm.running_var.fill_(0.3)  # type: ignore[union-attr]
        model.head.weight *= 12  # scores that differ
    return model.eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    torch.manual_seed(1)
    coarse = torch.randn(3, 3, 6, 8)
    return F.interpolate(coarse, SIZE, mode="bicubic") + 0.1 * torch.randn(3, 3, *SIZE)


def score_of(logits: Tensor, target: int, score: str) -> Tensor:
    if score == "prob":
        return logits.softmax(-1)[target]
    return (logits.log_softmax(-1) if score == "logprob" else logits)[target]


def mask_of(channel: Tensor, masks: str) -> Tensor:
    """One channel [h,w] as a mask [H,W], by the words of the paper."""

    def up(x: Tensor, align_corners: bool) -> Tensor:
        args: Any = {"size": SIZE, "mode": "bilinear", "align_corners": align_corners}
        return F.interpolate(x[None, None], **args)[0, 0]

    def scaled(x: Tensor) -> Tensor:
        span = x.max() - x.min()
        return torch.zeros_like(x) if span < 1e-9 else (x - x.min()) / span

    return scaled(up(channel, True)) if masks == "image" else up(scaled(channel), False)


def by_hand(
    model: nn.Module, image: Tensor, target: int, score: str, masks: str = "image"
) -> list[Tensor]:
    """Layer maps of one image and class: one forward a channel, and one for the baseline."""
    kept: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda _module, _args, output: kept.update({name: output[0].clone()})

    handles = [model.get_submodule(n).register_forward_hook(keep(n)) for n in LAYERS]
    with torch.no_grad():
        model(image[None])
        for handle in handles:
            handle.remove()
        baseline = score_of(model(torch.zeros_like(image)[None])[0], target, score)
        maps = []
        for name in LAYERS:
            gains = [
                score_of(model((image * mask_of(channel, masks))[None])[0], target, score)
                - baseline
                for channel in kept[name]
            ]
            weights = torch.stack(gains).softmax(0)
            # Else a test of the mean; probabilities differ by less than 1.
            assert weights.std() > (2e-4 if score == "prob" else 1e-3)
            maps.append((weights[:, None, None] * kept[name]).sum(0).clamp(min=0))
    return maps


@pytest.mark.parametrize("score", ["logprob", "prob", "logit"])
@pytest.mark.parametrize("masks", ["image", "grid"])
def test_against_a_computation_by_hand(
    score: str, masks: str, network: nn.Module, images: Tensor
) -> None:
    model = copy.deepcopy(network).double()
    found = Explainer(
        model, SIZE, LAYERS, "scorecam", score, targets=2, masks=masks, keep_layers=True
    )(images)
    logits = model(images.double())
    assert torch.equal(found.targets, logits.topk(2).indices)
    torch.testing.assert_close(found.logits.double(), logits, atol=1e-5, rtol=1e-5)
    probability = logits.softmax(-1).gather(1, found.targets)
    torch.testing.assert_close(found.scores.double(), probability, atol=1e-6, rtol=1e-5)
    for b in range(len(images)):
        for k in range(2):
            expected = by_hand(model, images[b].double(), int(found.targets[b, k]), score, masks)
            for name, layer_map in zip(LAYERS, expected, strict=True):
                assert (found.layer_maps[name][b, k] - layer_map).abs().max() < 1e-5
            total = sum(
                F.interpolate(m[None, None], SIZE, mode="bilinear", align_corners=True)
                for m in expected
            )
            assert isinstance(total, Tensor)
            assert (found.heatmaps[b, k] - unit(total)[0, 0]).abs().max() < 1e-5


def test_logprob_weighs_by_the_probability_of_the_masked_image(
    network: nn.Module, images: Tensor
) -> None:
    """As the authors' code does, without a softmax over channels."""
    found = Explainer(network, SIZE, "high", "scorecam", keep_layers=True)(images[:1])
    acts = network.high(network.low(images[:1]))[0]
    masked = torch.stack([images[0] * mask_of(channel, "image") for channel in acts])
    p = network(masked).softmax(-1)[:, found.targets[0, 0]]
    expected = (p[:, None, None] * acts).sum(0).clamp(min=0) / p.sum()
    torch.testing.assert_close(found.layer_maps["high"][0, 0], expected, atol=1e-5, rtol=1e-4)


def test_chunks_change_nothing(network: nn.Module, images: Tensor) -> None:
    whole = Explainer(network, SIZE, LAYERS, "scorecam", targets=2, chunk=1000)(images)
    for chunk in (1, 5, 8):
        found = Explainer(network, SIZE, LAYERS, "scorecam", targets=2, chunk=chunk)(images)
        torch.testing.assert_close(found.heatmaps, whole.heatmaps, atol=1e-5, rtol=0)
        torch.testing.assert_close(found.ranges, whole.ranges, atol=1e-6, rtol=1e-5)


def test_a_chunk_that_does_not_fit_is_halved(
    network: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    explainer = Explainer(network, SIZE, LAYERS, "scorecam", chunk=16)
    expected = explainer(images)
    assert isinstance(explainer.session, ModelSession)
    method = explainer.session.forward_only
    assert method is not None and method.chunk == 16
    forward, sizes, most = method._logits, list[int](), 5

    def short_of_memory(batch: Tensor) -> Any:
        sizes.append(len(batch))
        if len(batch) > most:
            raise torch.OutOfMemoryError("too many")
        return forward(batch)

    monkeypatch.setattr(method, "_logits", short_of_memory)
    found = explainer(images)
    assert method.chunk == 4 and sizes[:4] == [16, 8, 4, 4]
    torch.testing.assert_close(found.heatmaps, expected.heatmaps, atol=1e-5, rtol=0)
    most = 0
    with pytest.raises(torch.OutOfMemoryError):
        explainer(images)


def test_default_chunk_is_bounded_by_memory(network: nn.Module) -> None:
    small = Explainer(network, SIZE, "high", "scorecam")
    large = Explainer(network, (1024, 2048), "high", "scorecam")
    chunks = [e.session.forward_only.chunk for e in (small, large)]  # type: ignore[attr-defined]
    # The largest tensor is the image, 24 MiB: four of its size, twice, in 256 MiB.
    assert chunks == [256, 2]


def test_images_of_a_batch_do_not_mix(network: nn.Module, images: Tensor) -> None:
    explainer = Explainer(network, SIZE, LAYERS, "scorecam", chunk=7)
    together = explainer(images)
    for b in range(3):
        alone = explainer(images[b : b + 1])
        torch.testing.assert_close(alone.heatmaps[0], together.heatmaps[b], atol=1e-5, rtol=0)
    broken = images.clone()
    broken[1, 0, 0, 0] = torch.nan
    found = explainer(broken)
    assert found.ranges[1].isnan().all() and found.heatmaps.isfinite().all()
    torch.testing.assert_close(found.heatmaps[[0, 2]], together.heatmaps[[0, 2]], atol=1e-5, rtol=0)


def test_every_form_of_targets(network: nn.Module, images: Tensor) -> None:
    explainer = Explainer(network, SIZE, LAYERS, "scorecam", targets=2)
    best = explainer(images)
    swapped = explainer(images, targets=best.targets.flip(1))
    torch.testing.assert_close(swapped.heatmaps, best.heatmaps.flip(1), atol=1e-5, rtol=0)
    ranked = explainer(images, targets=[-1, -1, -1])
    torch.testing.assert_close(ranked.heatmaps[:, 0], best.heatmaps[:, 0], atol=1e-5, rtol=0)
    one_hot = F.one_hot(best.targets, 5).float()
    by_weights = explainer(images, targets=3 * one_hot)
    torch.testing.assert_close(by_weights.heatmaps, best.heatmaps, atol=1e-5, rtol=0)
    assert (by_weights.targets == -1).all()
    pair = combicam.contrast(best.targets[:, 0], best.targets[:, 1])
    contrasted = explainer(images, targets=pair)
    torch.testing.assert_close(
        contrasted.scores, best.scores[:, :1] - best.scores[:, 1:], atol=1e-6, rtol=1e-5
    )
    assert (contrasted.heatmaps[:, 0] - best.heatmaps[:, 0]).abs().max() > 1e-3
    with pytest.raises(TraceError, match="targets <= 5"):
        explainer(images, targets=torch.zeros(3, 6, dtype=torch.int64))


def test_the_callers_model_is_left_alone(network: nn.Module, images: Tensor) -> None:
    model = copy.deepcopy(network).train()
    state = {n: t.clone() for n, t in model.state_dict().items()}
    with torch.inference_mode():
        Explainer(model, SIZE, LAYERS, "scorecam")(images)
    assert all(m.training and not m._forward_hooks for m in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())


@pytest.mark.slow
def test_compile_backend(network: nn.Module, images: Tensor) -> None:
    eager = Explainer(network, SIZE, LAYERS, "scorecam", chunk=5)(images)
    compiled = Explainer(network, SIZE, LAYERS, "scorecam", backend="compile", chunk=5)(images)
    torch.testing.assert_close(compiled.heatmaps, eager.heatmaps, atol=1e-5, rtol=0)


def test_half_precision(network: nn.Module, images: Tensor) -> None:
    full = Explainer(network, SIZE, LAYERS, "scorecam")(images)
    half = Explainer(network, SIZE, LAYERS, "scorecam", dtype="bfloat16")(images)
    assert half.heatmaps.dtype == torch.float32
    assert (half.heatmaps - full.heatmaps).abs().mean() < 0.03


@pytest.mark.parametrize("backend", ["torchscript", "onnxruntime", "aoti"])
def test_runtimes_of_files_are_refused(backend: str, network: nn.Module) -> None:
    with pytest.raises(
        ValueError, match=r"'eager' or 'compile'.*once per channel.*got '" + backend
    ):
        Explainer(network, SIZE, LAYERS, "scorecam", backend=backend)


def test_artifacts_are_refused(network: nn.Module, tmp_path: Path) -> None:
    explainer = Explainer(network, SIZE, LAYERS, "scorecam")
    for suffix in (".onnx", ".ts", ".pt2"):
        with pytest.raises(TraceError, match=r"once per channel.*cannot be a single graph"):
            combicam.export(explainer, tmp_path / f"model{suffix}")
    assert not list(tmp_path.iterdir())


def test_the_command_line(photos: Callable[..., list[Path]], tmp_path: Path) -> None:
    photos(tmp_path / "photos", 2)
    inputs = [str(tmp_path / "photos"), "-m", "demo", "--layers", "last", "--device", "cpu"]
    method = ["--method", "scorecam", "--chunk", "24", "--no-progress"]
    main(["run", *inputs, "-o", str(tmp_path / "run"), *method])
    shard = combicam.read_shard(tmp_path / "run", 0)
    assert shard.heatmaps is not None and shard.heatmaps.shape == (2, 1, 160, 160)
    assert (shard.heatmaps.max((1, 2, 3)) == 255).all()
    with pytest.raises(SystemExit, match="runs no changed images"):
        main(["run", *inputs, "-o", str(tmp_path / "other"), *method[2:]])
    with pytest.raises(SystemExit, match="cannot be a single graph"):
        main(["export", *inputs[1:5], "-o", str(tmp_path / "model.onnx"), *method[:2]])


def test_wrong_arguments(network: nn.Module) -> None:
    for chunk in (0, -1, 2.5, True):
        with pytest.raises(ValueError, match="chunk as an int >= 1"):
            Explainer(network, SIZE, LAYERS, "scorecam", chunk=chunk)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="runs no changed images"):
        Explainer(network, SIZE, LAYERS, chunk=4)
    with pytest.raises(ValueError, match="masks in"):
        Explainer(network, SIZE, LAYERS, "scorecam", masks="layer")
    with pytest.raises(TraceError, match="one layer weight per layer"):
        Explainer(network, SIZE, LAYERS, "scorecam", layer_weights=(1.0,))


def test_pytorch_grad_cam(network: nn.Module, images: Tensor) -> None:
    from pytorch_grad_cam import ScoreCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    model = copy.deepcopy(network)
    preset = Explainer.preset("pytorch-grad-cam", model, SIZE, layers=LAYERS, method="scorecam")
    ours = preset(images, targets=[0, 3, 1])
    with ScoreCAM(model=model, target_layers=[model.low, model.high]) as cam:
        theirs = cam(images, [ClassifierOutputTarget(t) for t in (0, 3, 1)])
    assert theirs.max() > 0.99
    assert np.abs(ours.heatmaps[:, 0].numpy() - theirs).max() < 2e-3  # cv2's steps, as elsewhere


@pytest.mark.parametrize("layers", [["high"], list(LAYERS)])
def test_torchcam(layers: list[str], network: nn.Module, images: Tensor) -> None:
    from torchcam.methods import ScoreCAM

    model = copy.deepcopy(network)
    preset = Explainer.preset("torchcam", model, SIZE, layers=layers, method="scorecam")
    assert preset.spec.masks == "grid"
    ours = preset(images, targets=[0, 3, 1])
    with ScoreCAM(model, layers, input_shape=(3, *SIZE)) as extractor, torch.no_grad():
        model(images)
        maps = [m[:, None] for m in extractor([0, 3, 1])]
    up = [F.interpolate(m, SIZE, mode="bilinear", align_corners=False)[:, 0] for m in maps]
    theirs = torch.stack(up).amax(0)
    assert theirs.max() > 0.9
    assert (ours.heatmaps[:, 0] - theirs).abs().max() < 1e-4
