"""Operators beyond the usual CNN's: explained as autograd does, in every format, or refused by
name of the operator and of the module that calls it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from cam_oracle import acts_and_grads
from torch import Tensor, nn

from combicam import Explainer, TraceError, export

SIZE = (12, 14)


class Call(nn.Module):
    """A function of a grid [B,6,12,14] and of modules."""

    def __init__(self, function: Callable[..., Tensor], *modules: nn.Module) -> None:
        super().__init__()
        self.function, self.inner = function, nn.ModuleList(modules)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.inner)


class Branches(nn.Module):
    """A layer, then every operator on its own, and the sum of their logits."""

    def __init__(self, operators: dict[str, nn.Module]) -> None:
        super().__init__()
        self.first, self.act = nn.Conv2d(3, 6, 3, padding=1), nn.SiLU()
        self.branches = nn.ModuleDict(operators)
        self.heads = nn.ModuleDict()
        with torch.no_grad():
            x = self.act(self.first(torch.randn(2, 3, *SIZE)))
            for name, operator in operators.items():
                y = operator.eval()(x).flatten(1)
                self.heads[name] = nn.Linear(y.shape[1], 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.first(x))
        each = [self.heads[n](branch(x).flatten(1)) for n, branch in self.branches.items()]
        return torch.stack(each).sum(0)


def resized(**options: object) -> nn.Module:
    return Call(lambda x: F.interpolate(x, **options))  # type: ignore[arg-type]


def transformed(mode: str, padding: str, corners: bool) -> nn.Module:
    """A spatial transformer: a grid is learned, affine, and sampled."""
    localise = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 6))
    localise[2].weight.data *= 0.3
    localise[2].bias.data = torch.tensor([1.1, 0.1, 0.05, -0.1, 0.9, 0.02])

    def function(x: Tensor, net: nn.Module) -> Tensor:
        grid = F.affine_grid(net(x).view(-1, 2, 3), list(x.shape), align_corners=corners)
        return F.grid_sample(x, grid, mode, padding, align_corners=corners)

    return Call(function, localise)


def recurrent(kind: type[nn.RNNBase], batch_first: bool, both: bool) -> nn.Module:
    """Over the positions of a feature map."""

    def function(x: Tensor, net: nn.Module) -> Tensor:
        rows = F.avg_pool2d(x, 6).flatten(2)  # 4 positions
        rows = rows.transpose(1, 2) if batch_first else rows.permute(2, 0, 1)
        found: Tensor = net(rows)[0]
        return found if batch_first else found.transpose(0, 1)

    return Call(function, kind(6, 5, batch_first=batch_first, bidirectional=both))


def attention(x: Tensor, net: nn.Module) -> Tensor:
    rows = F.avg_pool2d(x, 4).flatten(2).permute(2, 0, 1)
    found: Tensor = net(rows, rows, rows, need_weights=False)[0]
    return found.transpose(0, 1)


GROUPS: dict[str, dict[str, Callable[[], nn.Module]]] = {
    "padding": {
        "even": lambda: nn.Conv2d(6, 5, (4, 3), padding="same"),
        "even_dilated": lambda: nn.Conv2d(6, 5, 2, padding="same", dilation=3),
        "even_1d": lambda: Call(lambda x, c: c(x.flatten(2)), nn.Conv1d(6, 4, 4, padding="same")),
        "replicate": lambda: nn.ReplicationPad2d((1, 2, 3, 4)),
        "replicate_negative": lambda: nn.ReplicationPad2d((-1, 2, 3, -4)),
        "replicate_3d": lambda: Call(lambda x: F.pad(x[:, None], (1, 2, 0, 1, 1, 0), "replicate")),
        "circular": lambda: nn.Conv2d(6, 5, 3, padding=1, padding_mode="circular"),
    },
    "resizing": {
        "nearest_exact": lambda: resized(size=(19, 9), mode="nearest-exact"),
        "bicubic": lambda: resized(scale_factor=1.7, mode="bicubic"),
        "bicubic_corners": lambda: resized(size=(7, 21), mode="bicubic", align_corners=True),
        "bilinear_antialias": lambda: resized(size=(5, 20), mode="bilinear", antialias=True),
        "area": lambda: resized(size=(5, 9), mode="area"),
        "linear": lambda: Call(lambda x: F.interpolate(x.flatten(2), size=50, mode="linear")),
        "trilinear": lambda: Call(
            lambda x: F.interpolate(x[:, None], (4, 9, 10), mode="trilinear")
        ),
    },
    "pools": {
        "adaptive_max": lambda: nn.AdaptiveMaxPool2d((5, 4)),
        "adaptive_3d": lambda: Call(lambda x: F.adaptive_max_pool3d(x[:, None], (4, 5, 6))),
        "adaptive_average_3d": lambda: Call(lambda x: F.adaptive_avg_pool3d(x[:, None], (4, 5, 6))),
        "divisor": lambda: nn.AvgPool2d(3, 2, padding=1, ceil_mode=True, divisor_override=4),
        "lp": lambda: nn.LPPool2d(2, 3),
        "average_3d": lambda: Call(lambda x: F.avg_pool3d(x[:, None], 2, 2, 1)),
        "max_3d": lambda: Call(lambda x: F.max_pool3d(x[:, None], 3, 2)),
    },
    "windows": {
        "unfold": lambda: nn.Unfold(3, padding=1, stride=2),
        "fold": lambda: Call(lambda x: F.fold(F.unfold(x, 3, stride=2).tanh(), SIZE, 3, stride=2)),
        "views": lambda: Call(lambda x: x.unfold(2, 4, 3).unfold(3, 4, 2).amax((4, 5))),
        "response": lambda: nn.LocalResponseNorm(4, alpha=1.0),
        "bilinear": lambda: Call(
            lambda x, b: b(x.mean((2, 3)), x.amax((2, 3))), nn.Bilinear(6, 6, 5)
        ),
        "numbered": lambda: Call(
            lambda x: x[torch.arange(x.shape[0])[:, None], x.mean((2, 3)).topk(3).indices]
        ),
        "quantile": lambda: Call(lambda x: x.flatten(2).quantile(0.3, dim=2)),
        "sequence_first": lambda: Call(attention, nn.MultiheadAttention(6, 2)),
        **{
            kind.__name__: (lambda kind=kind: kind(0.1))  # type: ignore[misc]
            for kind in (nn.Hardshrink, nn.Softshrink)
        },
        "rrelu": nn.RReLU,
    },
    "sampling": {
        "bilinear": lambda: transformed("bilinear", "zeros", False),
        "nearest": lambda: transformed("nearest", "border", True),
    },
    "recurrent": {
        "lstm": lambda: recurrent(nn.LSTM, True, True),
        "gru": lambda: recurrent(nn.GRU, False, False),
    },
}


def errors(explainer: Explainer, exact: nn.Module, images: Tensor) -> Tensor:
    """Of every image's logits, and of its maps, relative to the largest; image by image."""
    found, worst = explainer(images), []
    for b in range(len(images)):
        image = images[b : b + 1].double()
        logits = exact(image)[0]
        worst.append((found.logits[b] - logits).abs().max() / logits.abs().max())
        for k in range(2):
            acts, grads = acts_and_grads(
                exact, "first", image, found.targets[b, k : k + 1], "logit"
            )
            expected = (acts * grads).clamp(min=0).sum(1)[0]
            error = found.layer_maps["first"][b, k] - expected
            worst.append(error.abs().max() / expected.max())
    return torch.stack(worst)


@pytest.mark.long
@pytest.mark.parametrize(
    "group",
    [g if g in ("padding", "pools") else pytest.param(g, marks=pytest.mark.slow) for g in GROUPS],
)
def test_maps_are_those_of_autograd_in_every_format(group: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Branches({name: make() for name, make in GROUPS[group].items()}).eval()
    exact = copy.deepcopy(model).double()
    options = {"layers": ["first"], "method": "elementwise", "score": "logit", "targets": 2}
    explainer = Explainer(model, SIZE, keep_layers=True, **options)  # type: ignore[arg-type]
    with_script = (".ts",) if group in ("padding", "sampling", "recurrent") else ()
    for number, suffix in enumerate(("", ".onnx", *with_script)):
        if suffix:
            export(explainer, tmp_path / f"graph{suffix}", verify=0)
            explainer_here = Explainer.load(tmp_path / f"graph{suffix}")
        else:
            explainer_here = explainer
        for batch in (1, 3):
            generator = torch.Generator().manual_seed(10 * number + batch)
            images = torch.randn(batch, 3, *SIZE, generator=generator)
            worst = errors(explainer_here, exact, images)
            assert worst.max() < 1e-3, (suffix, batch, worst)


class Deformed(nn.Module):
    """Deformable convolution, whose offsets are learned."""

    def __init__(self) -> None:
        super().__init__()
        self.offset = nn.Conv2d(6, 18, 3, padding=1)
        self.convolution = torchvision.ops.DeformConv2d(6, 6, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.convolution(x, self.offset(x))
        return found


def test_deformable_convolution_is_explained_but_in_no_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Branches({"deformed": Deformed()}).eval()
    options = {"layers": ["first"], "method": "elementwise", "score": "logit", "targets": 2}
    explainer = Explainer(model, SIZE, keep_layers=True, **options)  # type: ignore[arg-type]
    found = errors(explainer, copy.deepcopy(model).double(), torch.randn(3, 3, *SIZE))
    assert found.median() < 1e-5
    for suffix in (".onnx", ".ts", ".pt2"):
        words = r"torchvision\.deform_conv2d.* 'branches\.deformed\.convolution' \(DeformConv2d\)"
        with pytest.raises(TraceError, match=words):
            export(explainer, tmp_path / f"graph{suffix}")
    assert not list(tmp_path.iterdir())


@torch.library.custom_op("combicam_tests::cube", mutates_args=())
def cube(x: Tensor) -> Tensor:
    return x**3


@cube.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda x: torch.cat([2 * part for part in x.chunk(2, 0)]), "Tensor.chunk in module"),
        (lambda x: torch.cat([2 * part for part in x.split(1)]), "Tensor.split in module"),
        (lambda x: torch.stack([2 * part for part in x]), "in module"),
        (lambda x: x.view(int(x.shape[0]), 6, -1), "Tensor.view in module"),
        (lambda x: cube(x), r"cube.* in module"),
    ],
)
def test_what_cannot_be_traced_is_refused_by_name(
    function: Callable[[Tensor], Tensor], words: str
) -> None:
    """Splits and sizes of the batch; an operator without a derivative."""
    model = Branches({"odd": Call(function)})
    for targets in (1, 2):
        with pytest.raises(TraceError, match=rf"{words} 'branches\.odd' \(Call\)"):
            Explainer(model, SIZE, layers=["first"], targets=targets)


@pytest.mark.long
@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda x: x.cummax(2).values, r"aten\.cummax, of torch\.Tensor\.cummax"),
        (lambda x: torch.erfinv(x.tanh() / 2), r"erf_?inv, of torch\.erfinv"),
        (lambda x: torch.fft.rfft2(x).abs(), r"where, of the backward of torch\.Tensor\.abs"),
        (lambda x: x.prod(1), r"prod, of the backward of torch\.Tensor\.prod"),
    ],
)
def test_what_onnx_lacks_is_refused_by_name(
    function: Callable[[Tensor], Tensor], words: str, tmp_path: Path
) -> None:
    explainer = Explainer(Branches({"odd": Call(function)}), SIZE, layers=["first"])
    expected = rf"ONNX has no form of .*{words} in module 'branches\.odd' \(Call\); .*\.ts or"
    with pytest.raises(TraceError, match=expected):
        export(explainer, tmp_path / "graph.onnx")
    found = export(explainer, tmp_path / "graph.ts")
    assert found is not None and found.agrees
    assert not (tmp_path / "graph.onnx").exists()


def test_channels_may_be_split() -> None:
    """Splitting another dimension than the batch is fine."""
    model = Branches({"split": Call(lambda x: torch.cat([2 * part for part in x.split(3, 1)], 1))})
    explainer = Explainer(model, SIZE, layers=["first"], targets=2)
    images = torch.randn(5, 3, *SIZE)
    together = explainer(images).heatmaps
    alone = torch.cat([explainer(images[i : i + 1]).heatmaps for i in range(5)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
