"""What people's networks look like: each explained as it is, or refused by name."""

from __future__ import annotations

import copy
import types
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from cam_oracle import combi_cam
from torch import Tensor, nn
from torch.nn.utils import prune, spectral_norm, weight_norm
from torch.utils.checkpoint import checkpoint

from combicam import Explainer, TraceError, export
from combicam.export.trace.agreement import Agreement
from combicam.export.trace.snapshot import snapshot

SIZE = (24, 32)


def network(norm: Callable[[int], nn.Module] = nn.BatchNorm2d, classes: int = 5) -> nn.Sequential:
    """Layers 2 and 5 are its blocks."""
    features = [nn.Conv2d(3, 8, 3), norm(8), nn.SiLU(), nn.Conv2d(8, 8, 3), norm(8), nn.SiLU()]
    return nn.Sequential(*features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes))


def photos(count: int = 3) -> Tensor:
    """Of very different contrast."""
    images = torch.randn(count, 3, *SIZE, generator=torch.Generator().manual_seed(1))
    return images * torch.tensor([0.1, 1.0, 3.0])[:count, None, None, None] + 0.5


def check(model: nn.Module, given: nn.Module | None = None) -> Explainer:
    """The maps of ``given``, which explains ``model``, by autograd in float64, image by image."""
    exact = copy.deepcopy(model).double().eval()
    explainer = Explainer(model if given is None else given, SIZE, targets=2)
    names = [info.name for info in explainer.layers]
    found = explainer(photos())
    for k in range(2):
        for b in range(3):
            image, target = photos()[b : b + 1].double(), found.targets[b : b + 1, k]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                torch.testing.assert_close(
                    found.logits[b : b + 1].double(), exact(image), atol=1e-5, rtol=1e-4
                )
                expected = combi_cam(exact, names, image, target)
            assert (found.heatmaps[b, k] - expected[0]).abs().max() < 1e-4
            assert found.heatmaps[b, k].max() == 1
    return explainer


def without_statistics(channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels, track_running_stats=False)


def test_batch_norm_without_statistics() -> None:
    """As the network itself computes an image alone, whoever its neighbours are."""
    explainer = check(network(without_statistics))
    together = explainer(photos()).heatmaps
    alone = torch.cat([explainer(photos()[i : i + 1]).heatmaps for i in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)


class Mixing(nn.Module):
    """Subtracts the batch's mean."""

    def __init__(self, channels: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean((0, 2, 3), keepdim=True)


class Noisy(Mixing):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, training=True)


class Always(nn.BatchNorm2d):
    """Stays in training mode."""

    def forward(self, x: Tensor) -> Tensor:
        self.train()
        return super().forward(x)


@pytest.mark.parametrize(
    ("norm", "words"),
    [
        (Mixing, r"module '1' \(Mixing\) mixes the images of a batch"),
        (Always, r"module '1' \(Always\) changes its 'num_batches_tracked' in eval mode"),
        (Noisy, r"module '1' \(Noisy\) gives random outputs"),
    ],
)
def test_what_mixes_images_is_refused(norm: Callable[[int], nn.Module], words: str) -> None:
    with pytest.raises(TraceError, match=words):
        Explainer(network(norm), SIZE)


class Chaotic(nn.Module):
    """Magnifies a rounding of a pixel to the size of its output, as untrained networks may."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.sigmoid()
        for _ in range(40):
            x = 3.9 * x * (1 - x)
        return x


def test_roundings_that_a_network_magnifies_are_no_error() -> None:
    """What mixes images is still found, and another graph where nothing is magnified."""
    chaotic = nn.Sequential(Chaotic(), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(144, 5)).eval()
    agreement = Agreement(chaotic, SIZE)
    agreement.check(lambda x: chaotic(x * (1 + 2e-7)))
    calm = network().eval()
    with pytest.raises(TraceError, match="expected a graph with the logits"):
        Agreement(calm, SIZE).check(lambda x: calm(x * 1.1))
    mixing = nn.Sequential(Mixing(3), *chaotic).eval()
    plain = nn.Sequential(Mixing(3), Chaotic(), nn.Flatten(), nn.Linear(3 * 24 * 32, 5)).eval()
    for network_that_mixes in (mixing, plain):
        with pytest.raises(TraceError, match=r"module '0' \(Mixing\) mixes the images of a batch"):
            Agreement(network_that_mixes, SIZE).check(network_that_mixes)


def test_hooks_that_return_a_value_are_part_of_the_network() -> None:
    model, seen = network(), []  # type: ignore[var-annotated]
    gate = nn.Parameter(torch.rand(8, 1, 1))
    model[1].register_forward_hook(lambda _m, _a, out: out * gate + 1)
    model[3].register_forward_hook(lambda _m, _a, out: seen.append(out))
    model[4].register_forward_hook(
        lambda _m, _a, kwargs, out: out.tanh() if not kwargs else None, with_kwargs=True
    )
    explainer = Explainer(model, SIZE)
    assert not seen
    images = photos()
    torch.testing.assert_close(explainer(images).logits, model.eval()(images), atol=1e-5, rtol=1e-4)
    model.get_submodule("1")._forward_hooks.clear()
    assert (explainer(images).logits - model(images)).abs().max() > 1e-2


def test_a_hook_that_changes_tensors_in_place_is_refused() -> None:
    model = network()
    model[0].register_forward_hook(lambda _m, _a, out: (out.mul_(2), None)[1])
    with pytest.raises(TraceError, match="a hook that changes tensors in place"):
        Explainer(model, SIZE)


@pytest.mark.parametrize("how", ["closure", "method"])
def test_a_replaced_forward_is_explained(how: str) -> None:
    model = network()
    old = model.forward
    if how == "closure":
        model.forward = lambda x: old(2 * x).tanh()  # type: ignore[method-assign]
    else:
        model.forward = types.MethodType(  # type: ignore[method-assign]
            lambda self, x: nn.Sequential.forward(self, 2 * x).tanh(), model
        )
    explainer = Explainer(model, SIZE)
    assert [info.name for info in explainer.layers] == ["2", "5"]
    expected = model.eval()(photos())
    torch.testing.assert_close(explainer(photos()).logits, expected, atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        model[8].weight.zero_()  # later training does not reach the copy
    torch.testing.assert_close(explainer(photos()).logits, expected, atol=1e-5, rtol=1e-4)


def test_wrappers_are_taken_off() -> None:
    model = network().eval()
    check(model, nn.DataParallel(model))
    check(model, torch.compile(model, backend="eager"))  # type: ignore[arg-type]
    inside = network().eval()
    whole = nn.Sequential(torch.compile(inside[:6], backend="eager"), *inside[6:])  # type: ignore[arg-type]
    explainer = Explainer(whole, SIZE)
    expected = inside(photos())
    torch.testing.assert_close(explainer(photos()).logits, expected, atol=1e-5, rtol=1e-4)


def test_distributed_wrappers_are_taken_off() -> None:
    model = network().eval()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(model)
        explainer = Explainer(wrapped, SIZE)
    finally:
        dist.destroy_process_group()
    assert [info.name for info in explainer.layers] == ["2", "5"]
    torch.testing.assert_close(explainer(photos()).logits, model(photos()), atol=1e-5, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_weights_that_are_computed() -> None:
    model = network()
    weight_norm(model[0])
    spectral_norm(model[3])
    prune.l1_unstructured(model[8], "weight", 0.5)
    model(photos())  # in training mode: the weights have a history
    model.eval()
    explainer = Explainer(model, SIZE)
    torch.testing.assert_close(explainer(photos()).logits, model(photos()), atol=1e-5, rtol=1e-4)
    assert hasattr(model[0], "weight_g") and hasattr(model[8], "weight_mask")


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.model = network()
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        x = self.model[:3](x)
        x = checkpoint(self.model[3:6], x, use_reentrant=self.reentrant)
        logits: Tensor = self.model[6:](x)
        return logits


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_blocks(reentrant: bool, tmp_path: Path) -> None:
    model = Checkpointed(reentrant).eval()
    explainer = Explainer(model, SIZE, targets=2)
    plain = Explainer(model.model, SIZE, targets=2)
    assert [info.name for info in explainer.layers] == ["model.2", "model.5"]
    found, expected = explainer(photos()), plain(photos())
    torch.testing.assert_close(found.heatmaps, expected.heatmaps, atol=1e-5, rtol=0)
    if reentrant:
        verified = export(explainer, tmp_path / "model.ts")
        assert verified is not None and verified.agrees


@pytest.mark.parametrize("suffix", [".ts", pytest.param(".onnx", marks=pytest.mark.slow)])
def test_exported_inside_autocast(suffix: str, tmp_path: Path) -> None:
    model = network()
    expected = Explainer(model, SIZE)(photos())
    with torch.autocast("cpu", torch.bfloat16):
        verified = export(Explainer(model, SIZE), tmp_path / f"model{suffix}")
        found = Explainer.load(tmp_path / f"model{suffix}")(photos())
    assert verified is not None and verified.agrees
    torch.testing.assert_close(found.heatmaps, expected.heatmaps, atol=1e-4, rtol=0)


@pytest.mark.parametrize("score", ["logprob", "prob", "logit"])
def test_one_logit_has_a_sigmoid(score: str) -> None:
    model = network(classes=1).eval()
    explainer = Explainer(model, SIZE, score=score)
    found = explainer(photos())
    torch.testing.assert_close(found.scores, model(photos()).sigmoid())
    fitting = {"logprob": "logsigmoid", "prob": "sigmoid", "logit": "logit"}
    assert explainer.spec.score == fitting[score]
    exact = copy.deepcopy(model).double()
    expected = combi_cam(exact, ["2", "5"], photos().double(), found.targets[:, 0], score="logit")
    assert (found.heatmaps[:, 0] - expected).abs().max() < 1e-4


@pytest.mark.parametrize("score", ["sigmoid", "logsigmoid"])
def test_many_labels(score: str) -> None:
    model = network(classes=14).eval()
    explainer = Explainer(model, SIZE, score=score, targets=3)
    found = explainer(photos())
    expected = model(photos()).sigmoid().topk(3)
    torch.testing.assert_close(found.scores, expected.values)
    assert torch.equal(found.targets, expected.indices)
    exact = copy.deepcopy(model).double()
    for k in range(3):
        maps = combi_cam(exact, ["2", "5"], photos().double(), found.targets[:, k], score="logit")
        assert (found.heatmaps[:, k] - maps).abs().max() < 1e-4


@pytest.mark.parametrize("last", [nn.Softmax(-1), nn.Sigmoid()])
def test_networks_that_return_probabilities_are_noticed(last: nn.Module) -> None:
    with pytest.warns(UserWarning, match=f"ends in {type(last).__name__}"):
        Explainer(nn.Sequential(*network(), last), SIZE)


@pytest.mark.parametrize("name", ["pickle", "cloudpickle"])
def test_explainers_are_pickled(name: str, tmp_path: Path) -> None:
    way = pytest.importorskip(name)
    explainer = Explainer(network(), SIZE, keep_layers=True)
    expected = explainer(photos())
    again = way.loads(way.dumps(explainer))
    assert again.fingerprint() == explainer.fingerprint() and again.keeps_layers
    torch.testing.assert_close(again(photos()).heatmaps, expected.heatmaps, atol=1e-5, rtol=0)
    export(explainer, tmp_path / "model.ts", verify=False)
    sent = way.dumps(Explainer.load(tmp_path / "model.ts"))
    (tmp_path / "model.ts").unlink()  # another machine does not have it
    torch.testing.assert_close(
        way.loads(sent)(photos()).heatmaps, expected.heatmaps, atol=1e-5, rtol=0
    )


def test_explainers_are_copied() -> None:
    explainer = Explainer(network(), SIZE)
    for other in (copy.copy(explainer), copy.deepcopy(explainer)):
        assert torch.equal(other(photos()).heatmaps, explainer(photos()).heatmaps)


def scripted() -> nn.Module:
    return torch.jit.script(network().eval())  # type: ignore[no-any-return]


def lazy() -> nn.Module:
    return nn.Sequential(network()[:6], nn.Flatten(), nn.LazyLinear(5))


def on_meta() -> nn.Module:
    with torch.device("meta"):
        return network()


def quantised() -> nn.Module:
    return nn.Sequential(network()[:7], nn.Flatten(), torch.ao.nn.quantized.Linear(8, 5))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (scripted, "a TorchScript module .* pass the module that it was made from"),
        (lambda: torch.jit.freeze(torch.jit.script(network().eval())), "TorchScript"),
        (lazy, r"lazy 'weight' of module '2' \(LazyLinear\); run the model once"),
        (on_meta, r"'weight' of module '0' \(Conv2d\) on the meta device"),
        (quantised, r"module '2' \(Linear\), a quantised module"),
    ],
)
def test_modules_without_values_or_gradients(make: Callable[[], nn.Module], words: str) -> None:
    with pytest.raises(TraceError, match=words):
        snapshot(make())


class Branch(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "branch" and x.mean() > 0:
            return 2 * x
        if self.how == "numpy":
            return x + torch.from_numpy(x.detach().numpy())
        return x * x.max().item() if self.how == "item" else x


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("branch", "a branch on it"),
        ("numpy", r"leaves torch \(such as by .numpy"),
        ("item", "item"),
    ],
)
def test_what_cannot_be_traced_is_located(how: str, words: str) -> None:
    model = nn.Sequential(network()[:3], Branch(how), *network()[3:])
    with pytest.raises(TraceError, match=words) as error:
        Explainer(model, SIZE)
    assert "in module '1' at" in str(error.value) and "test_networks.py:" in str(error.value)
    assert "input_size" not in str(error.value)
