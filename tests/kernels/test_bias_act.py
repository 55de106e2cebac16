"""Bias, residual and activation into a convolution's output: by hand, and the kernel."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from combicam.kernels.bias_act import ACTS, DTYPES, launch_bias_act

ours = torch.ops.combicam


def by_hand(y: Tensor, act: str) -> Tensor:
    """In float64."""
    return {
        "none": lambda: y,
        "relu": lambda: y * (y > 0),
        "relu6": lambda: y * ((y > 0) & (y < 6)) + 6 * (y >= 6),
        "silu": lambda: y * (y / 2).tanh() / 2 + y / 2,
        "hardswish": lambda: y * ((y + 3) * (y > -3) * (y < 3) + 6 * (y >= 3)) / 6,
    }[act]()


def sample(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """x, bias, z."""
    torch.manual_seed(0)
    x, z = ((4 * torch.randn(shape)).to(dtype).to(device) for _ in range(2))
    bias = torch.randn(shape[1]).to(dtype).to(device)
    last = torch.channels_last
    return [x.contiguous(memory_format=last), bias, z.contiguous(memory_format=last)]


def close(found: Tensor, exact: Tensor, before: float = 0.0) -> None:
    """Rounded once, and before that with an error of ``before`` roundings of 1."""
    unit = torch.finfo(found.dtype).eps
    torch.testing.assert_close(found.double(), exact, atol=unit * before + 1e-4, rtol=unit)


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((2, 24, 15, 13), DTYPES[0]), ((3, 5, 33, 31), DTYPES[1]), ((1, 12, 1, 2), DTYPES[0])],
)
def test_kernel(shape: tuple[int, ...], dtype: torch.dtype, act: str, device: torch.device) -> None:
    """Also channels that fill no vectors, and more values than one program takes."""
    x, bias, z = sample(shape, dtype, device)
    total = x.double() + bias.double()[:, None, None]
    for residual, exact in ((None, total), (z, total + z.double())):
        into = x.clone()
        launch_bias_act(into, bias, residual, act, into)
        close(into, by_hand(exact, act))
    into, result = x.clone(), torch.full_like(x, torch.nan)
    launch_bias_act(into, bias, None, act, result)
    close(into, total)
    close(result, by_hand(into.double(), act))


def test_kernel_keeps_what_is_not_finite(device: torch.device) -> None:
    x, bias, _ = sample((1, 8, 2, 3), torch.float16, device)
    x[0, 1, 1, 2], x[0, 3, 0, 1] = torch.nan, torch.inf
    for act in ACTS:
        into = x.clone()
        launch_bias_act(into, bias, None, act, into)
        assert into.isnan().sum() == 1 and into[0, 1, 1, 2].isnan()
        assert into[0, 3, 0, 1] == (6 if act == "relu6" else torch.inf)


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_operators(act: str, layout: torch.memory_format, device: torch.device) -> None:
    """They write into x, in any layout."""
    x, bias, z = sample((2, 8, 5, 4), torch.bfloat16, device)
    x = x.contiguous(memory_format=layout)
    total = x.double() + bias.double()[:, None, None]
    into = x.clone()
    assert ours.bias_act_(into, bias, z, act) is into
    close(into, by_hand(total + z.double(), act), before=32)
    assert into.is_contiguous(memory_format=layout)
    into = x.clone()
    if act != "none":
        summed, result = ours.bias_act_pair_(into, bias, act)
        assert summed is into
        close(into, total)
        close(result, by_hand(into.double(), act))
