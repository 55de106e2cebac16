"""Networks that return other things than logits, and that take other things than images."""

from __future__ import annotations

import operator
import os
import pickle
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cam_oracle import combi_cam
from torch import Tensor, nn

from combicam import Explainer, TraceError, export
from combicam.engine.explain.factory import make_explainer
from combicam.errors import ModelError
from combicam.export.models.models import LoadedModel, ModelConfig, load_model
from combicam.export.preprocess import Preprocess
from combicam.export.trace.output import call_digest, find_logits

SIZE = (24, 32)
PATH = os.pathsep.join(map(str, [Path(__file__).parent, *Path(__file__).parents[2:3]]))
LAYERS = ("features.1", "features.3")
REFERENCES = torch.randn(6, 8, generator=torch.Generator().manual_seed(5))


class Network(nn.Module):
    """Features [B,8,h,w], which ``tail`` turns into what the network returns."""

    def __init__(self, tail: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        layers = [nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Conv2d(8, 8, 3, 2), nn.SiLU()]
        self.features = nn.Sequential(*layers)
        self.country, self.city = nn.Linear(8, 4), nn.Linear(8, 5)
        self.pixels = nn.Conv2d(8, 3, 1)
        self.tail = tail
        for p in self.parameters():
            p.data = 0.5 * torch.randn(p.shape, generator=generator)

    def forward(self, x: Tensor) -> Any:
        return self.tail(self, self.features(x))


def pooled(x: Tensor) -> Tensor:
    return x.mean((2, 3))


@dataclass
class Found:
    loss: Tensor | None
    logits: Tensor
    hidden: tuple[Tensor, ...]


class ModelOutput(OrderedDict):  # type: ignore[type-arg]
    """As Hugging Face's: a dict whose items are attributes, too."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


def city(net: Any, x: Tensor) -> Tensor:
    return net.city(pooled(x))  # type: ignore[no-any-return]


def heads(net: Any, x: Tensor) -> Any:
    return {"heads": [net.country(pooled(x)), {"city": city(net, x)}], "features": x}


def largest_box(returned: Any) -> Tensor:
    """A detector's best score of each class over all boxes [B,boxes,4+n]."""
    return returned["boxes"][..., 4:].amax(1)  # type: ignore[no-any-return]


def inside_mask(returned: Any) -> Tensor:
    """A segmentation's mean logit of each class over its own pixels."""
    logits = returned["out"]
    mask = (logits == logits.amax(1, keepdim=True)).to(logits.dtype)
    return (logits * mask).sum((2, 3)) / mask.sum((2, 3)).clamp_min(1)


def similarities(embedding: Tensor) -> Tensor:
    return F.normalize(embedding, dim=1) @ F.normalize(REFERENCES, dim=1).T.to(embedding)


CASES: dict[str, tuple[Any, Any, Any]] = {
    "dict": (lambda n, x: {"map": x, "logits": city(n, x)}, None, lambda r: r["logits"]),
    "tuple": (lambda n, x: (x, (city(n, x), None)), None, lambda r: r[1][0]),
    "dataclass": (lambda n, x: Found(None, city(n, x), (x,)), None, lambda r: r.logits),
    "model output": (
        lambda n, x: ModelOutput(logits=city(n, x), hidden_states=(x, x)), None, lambda r: r.logits
    ),
    "one tensor in a list": (lambda n, x: [city(n, x)], None, lambda r: r[0]),
    "key": (lambda n, x: {"a": city(n, x), "b": n.country(pooled(x))}, "b", lambda r: r["b"]),
    "index": (lambda n, x: (n.country(pooled(x)), city(n, x)), 1, lambda r: r[1]),
    "last": (lambda n, x: (n.country(pooled(x)), city(n, x)), -1, lambda r: r[-1]),
    "attribute": (
        lambda n, x: Found(pooled(x), city(n, x), (x,)), "logits", lambda r: r.logits
    ),
    "nested": (heads, "heads.1.city", lambda r: r["heads"][1]["city"]),
    "segmentation": (lambda n, x: {"out": n.pixels(x)}, inside_mask, inside_mask),
    "embedding": (lambda n, x: pooled(x), similarities, similarities),
    "detector": (
        lambda n, x: {"boxes": n.city(x.flatten(2).transpose(1, 2)).repeat(1, 1, 2)},
        largest_box,
        largest_box,
    ),
    "one value": (lambda n, x: x.mean((1, 2, 3)), lambda r: r[:, None], lambda r: r[:, None]),
}  # fmt: skip


def photos(count: int = 3) -> Tensor:
    return torch.randn(count, 3, *SIZE, generator=torch.Generator().manual_seed(1))


class Chosen(nn.Module):
    def __init__(self, model: nn.Module, choose: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.model, self.choose = model, choose

    def forward(self, x: Tensor) -> Tensor:
        return self.choose(self.model(x))


@pytest.mark.parametrize("case", CASES)
def test_what_networks_return(case: str) -> None:
    """The maps of the chosen logits, by autograd in float64."""
    tail, output, choose = CASES[case]
    model = Network(tail)
    explainer = Explainer(model, SIZE, layers=LAYERS, output=output, score="logit")
    found = explainer(photos())
    exact = Chosen(Network(tail).double(), choose)
    images = photos().double()
    torch.testing.assert_close(found.logits.double(), exact(images), atol=1e-5, rtol=1e-5)
    names = [f"model.{name}" for name in LAYERS]
    for b in range(3):
        expected = combi_cam(exact, names, images[b : b + 1], found.targets[b], score="logit")
        assert (found.heatmaps[b, 0] - expected[0]).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("tail", "output", "words"),
    [
        (heads, None, r"got 2: heads.0 float32 \[1, 4\], heads.1.city float32 \[1, 5\], features"),
        (lambda n, x: {"out": n.pixels(x)}, None, r"got none: out float32 \[1, 3, 10, 14\]"),
        (lambda n, x: "photo", None, "got none: str"),
        (heads, "town", "expected 'town' among .* heads.0 float32"),
        (heads, "heads.7", "expected 'heads.7' among"),
        (heads, "features", r"expected logits \[B,n\] from features, got float32 \[1, 8, 10, 14\]"),
        (heads, lambda r: r["features"].sum(), r"got float32 \[\]"),
        (heads, lambda r: r["features"].argmax(1)[:, 0], "got int64"),
        (heads, lambda r: r["heads"], "got list"),
    ],
)
def test_refusals(tail: Any, output: Any, words: str) -> None:
    with pytest.raises(TraceError, match=words):
        Explainer(Network(tail), SIZE, layers=LAYERS, output=output)


def test_wrong_types() -> None:
    with pytest.raises(TypeError, match="expected output as None, a key"):
        Explainer(Network(city), SIZE, output=1.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected inputs as a dict"):
        Explainer(Network(city), SIZE, inputs=torch.ones(3))  # type: ignore[arg-type]


def test_a_function_that_fails() -> None:
    """The message has its line."""
    with pytest.raises(TraceError, match=r"KeyError: 'town'.*test_output.py:\d+"):
        Explainer(Network(heads), SIZE, layers=LAYERS, output=lambda r: r["town"])


def test_a_function_that_mixes_images() -> None:
    with pytest.raises(TraceError, match="mixes the images of a batch"):
        Explainer(Network(city), SIZE, layers=LAYERS, output=lambda r: r - r.mean(0))


def test_a_module_finds_the_logits() -> None:
    """With weights of its own, in bfloat16, and in a copy of the explainer."""
    head = nn.Sequential(nn.Flatten(), nn.LazyLinear(7))
    model = Network(lambda n, x: F.adaptive_avg_pool2d(x, 2))
    head(model(photos()))
    explainer = Explainer(model, SIZE, layers=LAYERS, output=head)
    with torch.no_grad():
        torch.testing.assert_close(explainer(photos()).logits, head(model(photos())))
        for p in head.parameters():
            p.zero_()  # later training changes nothing
    assert explainer(photos()).logits.abs().min() > 0
    half = Explainer(model, SIZE, layers=LAYERS, output=head, dtype="bfloat16")
    assert half(photos()).logits.shape == (3, 7)


class Conditioned(Network):
    """Also takes a record of each photo, a flag, and a temperature."""

    def __init__(self) -> None:
        super().__init__(city)
        self.record = nn.Linear(2, 8)

    def forward(self, x: Tensor, record: Tensor, t: Tensor, *, flag: bool = False) -> Any:
        features = self.features(x) * self.record(record)[:, :, None, None].sigmoid()
        return (city(self, features) / t, features) if flag else features


@pytest.mark.parametrize("by_name", [True, False])
@pytest.mark.parametrize("suffix", [".onnx", ".ts"])
def test_fixed_inputs(by_name: bool, suffix: str, tmp_path: Path) -> None:
    record, t = torch.tensor([[0.3, -2.0]]), torch.tensor([0.5])
    model = Conditioned()

    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> Tensor:
            given = record.to(x).expand(len(x), 2)
            return self.model(x, given, t.to(x), flag=True)[0]  # type: ignore[no-any-return]

    named = {"record": record, "t": t.numpy(), "flag": True}
    explainer = (
        Explainer(model, SIZE, layers=LAYERS, inputs=named)
        if by_name
        else Explainer(model, SIZE, layers=LAYERS, inputs=[record, t], output=city_of_features)
    )
    if by_name:
        found = explainer(photos())
        exact = Fixed().double()
        names = [f"model.{name}" for name in LAYERS]
        expected = combi_cam(exact, names, photos().double(), found.targets[:, 0])
        assert (found.heatmaps[:, 0] - expected).abs().max() < 1e-4
        model.float()
    path = tmp_path / f"a{suffix}"
    export(explainer, path)
    loaded = Explainer.load(path, device="cpu")
    ours, theirs = explainer(photos(5)), loaded(photos(5))
    assert (ours.heatmaps - theirs.heatmaps).abs().max() < 1e-4
    assert loaded.description.output == explainer.description.output
    assert loaded.description.weights == explainer.description.weights


def city_of_features(features: Tensor) -> Tensor:
    return pooled(features)[:, :5]


def test_inputs_of_a_sequential() -> None:
    """A buffer of the model does not become one of its layers."""

    class First(nn.Sequential):
        def forward(self, x: Tensor, scale: Tensor) -> Tensor:
            return super().forward(x * scale)  # type: ignore[no-any-return]

    model = First(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    explainer = Explainer(model, SIZE, inputs={"scale": torch.tensor(2.0)})
    torch.testing.assert_close(explainer(photos()).logits, model(photos(), 2.0))


def test_pickles() -> None:
    explainer = Explainer(Network(named_tail), SIZE, layers=LAYERS, output=similarities)
    other = pickle.loads(pickle.dumps(explainer))
    torch.testing.assert_close(other(photos()).heatmaps, explainer(photos()).heatmaps)
    assert other.fingerprint() == explainer.fingerprint()


def named_tail(_net: nn.Module, x: Tensor) -> Tensor:
    return pooled(x)


def test_fingerprints() -> None:
    """Another function, or the same with another tensor, gives other results."""

    def nearest(references: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda z: z @ references.T

    one, two = torch.eye(8), 2 * torch.eye(8)
    digests = {call_digest(f, None) for f in (nearest(one), nearest(two), similarities)}
    digests |= {call_digest(None, [one]), call_digest(None, [two]), call_digest("a", None)}
    digests |= {call_digest(nn.Linear(8, 2), None), call_digest(nn.Linear(8, 2), None)}
    assert len(digests) == 8
    assert call_digest(nearest(one), None) == call_digest(nearest(one.clone()), None)
    assert call_digest(None, None) == ""
    explainers = [
        Explainer(Network(city), SIZE, layers=LAYERS, output=output)
        for output in (None, lambda r: r * 2, lambda r: r * 3)
    ]
    assert len({e.fingerprint()["weights"] for e in explainers}) == 3


SCALES = [2.0]


def scaled(returned: Tensor) -> Tensor:
    return torch.stack([r * SCALES[0] for r in returned])


def in_a_set(returned: Tensor) -> Tensor:
    return returned if "d" in {"a", "b", "c", "d"} else -returned


@pytest.mark.slow
def test_digests_follow_globals_and_are_the_same_in_every_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also those that a function inside uses, and whatever the order of sets is."""
    before = call_digest(scaled, None)
    monkeypatch.setattr(sys.modules[__name__], "SCALES", [3.0])
    assert call_digest(scaled, None) != before
    code = "from combicam.export.trace.output import call_digest as f; import test_output as t; "
    code += "print(f(t.in_a_set, None))"
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": PATH},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(digests) == 1


def test_functions_written_in_c() -> None:
    """They have no code to read; two that differ have different digests."""
    model = Network(lambda n, x: {"a": city(n, x), "b": n.country(pooled(x))})
    explainer = Explainer(model, SIZE, layers=LAYERS, output=operator.itemgetter("b"))
    assert explainer.num_classes == 4
    assert explainer.description.output == "operator:itemgetter"
    digests = {call_digest(operator.itemgetter(key), None) for key in ("a", "b")}
    assert len({*digests, call_digest(torch.sigmoid, None), call_digest(torch.tanh, None)}) == 4


def make_several() -> nn.Module:
    return Network(heads)


def make_loaded() -> LoadedModel:
    return LoadedModel(Network(heads), Preprocess(SIZE), "several", output="heads.0")


def test_by_configuration() -> None:
    """As ``--output`` of the command line."""
    here = f"{__name__}:make_several"
    by_key = make_explainer(ModelConfig(here, img_size=SIZE, output="heads.1.city"))
    assert by_key.num_classes == 5
    by_function = ModelConfig(here, img_size=SIZE, output=f"{__name__}:first_head")
    explainer = make_explainer(by_function)
    assert explainer.num_classes == 4
    assert explainer.description.output == f"{__name__}:first_head"
    assert load_model(ModelConfig(here, output="-1")).output == -1
    assert make_explainer(ModelConfig(f"{__name__}:make_loaded")).num_classes == 4
    with pytest.raises(ModelError, match="expected an importable"):
        load_model(ModelConfig(here, output=f"{__name__}:nothing"))
    with pytest.raises(ModelError, match="to be a function, got"):
        load_model(ModelConfig(here, output=f"{__name__}:SIZE"))


def first_head(returned: Any) -> Tensor:
    return returned["heads"][0]  # type: ignore[no-any-return]


def test_attributes_that_are_no_fields() -> None:
    class Plain:
        logits = torch.ones(2, 3)

    assert find_logits(Plain(), "logits").shape == (2, 3)
