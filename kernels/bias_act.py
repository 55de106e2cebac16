"""Add a convolution's bias, and apply what follows, in one pass: ``combicam::bias_act_``.

Torch adds a bias on CUDA by a broadcasting kernel, which is slow on channels-last tensors, and
residuals and activations by one more each. These operators write into the convolution's output.
"""

from __future__ import annotations

from functools import cache
from math import gcd

import torch
from torch import Tensor

from combicam.kernels.jit import LaunchPlan, cdiv, jit, launch, tl

BLOCK = 4096  # values of one program: two loads of 16 bytes for each of 256 threads
ACTS = ("none", "relu", "relu6", "silu", "hardswish")
DTYPES = (torch.bfloat16, torch.float16)


def bias_act_reference(x: Tensor, bias: Tensor, z: Tensor | None, act: str) -> Tensor:
    """act(x + bias + z) in place."""
    x.add_(bias[:, None, None])
    if z is not None:
        x.add_(z)
    return x if act == "none" else getattr(torch.nn.functional, act)(x, inplace=True)


def bias_act_pair_reference(x: Tensor, bias: Tensor, act: str) -> tuple[Tensor, Tensor]:
    """x + bias in place, and act(x + bias)."""
    x.add_(bias[:, None, None])
    return x, getattr(torch.nn.functional, act)(x)


@jit(do_not_specialize=("rows", "row_channels"))
def bias_act_kernel(
    x_ptr,  # [rows, VECTOR]: B h w C values, channels last
    bias_ptr,  # [C]
    z_ptr,  # as x
    act_ptr,  # as x; of a pair the second
    rows,
    row_channels,  # C / VECTOR
    VECTOR: tl.constexpr,  # neighbours that have consecutive channels
    ACT: tl.constexpr,
    HAS_Z: tl.constexpr,
    IS_PAIR: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """x = act(x + bias + z); or x = x + bias and act = act(x)."""
    i_start = tl.program_id(0).to(tl.int64) * (BLOCK // VECTOR)
    start = i_start * VECTOR
    o_r = tl.arange(0, BLOCK // VECTOR)[:, None]
    o_v = tl.arange(0, VECTOR)[None, :]
    m_r = o_r < rows - i_start
    o_x = o_r * VECTOR + o_v
    channel = (o_r + (i_start % row_channels).to(tl.int32)) % row_channels * VECTOR + o_v
    b_x = tl.load(x_ptr + start + o_x, mask=m_r, other=0)  # [rows, VECTOR]
    b_y = b_x.to(tl.float32) + tl.load(bias_ptr + channel).to(tl.float32)
    if HAS_Z:
        b_y += tl.load(z_ptr + start + o_x, mask=m_r, other=0).to(tl.float32)
    if IS_PAIR:
        b_sum = b_y.to(b_x.dtype)
        tl.store(x_ptr + start + o_x, b_sum, mask=m_r)
        b_y = b_sum.to(tl.float32)
    if ACT == "relu" or ACT == "relu6":
        b_y = tl.where(b_y <= 0, 0.0, b_y)  # NaN stays
    if ACT == "relu6":
        b_y = tl.where(b_y >= 6, 6.0, b_y)
    if ACT == "silu":
        b_y = b_y / (1 + tl.exp(-b_y))
    if ACT == "hardswish":
        b_y = b_y * tl.minimum(tl.maximum(b_y + 3, 0.0), 6.0) / 6
    tl.store(act_ptr + start + o_x, b_y.to(b_x.dtype), mask=m_r)


def launch_bias_act(x: Tensor, bias: Tensor, z: Tensor | None, act: str, into: Tensor) -> None:
    """Launch the kernel, on the current device.

    Args:
        x: [B,C,h,w], channels last in memory.
        bias: [C].
        z: as x, or None.
        act: of ``ACTS``.
        into: where act(x + bias + z) goes: x, or for a pair another one, and x + bias into x.
    """
    channels = x.shape[1]
    vector = gcd(channels, 8)
    plan = _plan(vector, act, z is not None, into is not x)
    tensors = (x, bias, x if z is None else z, into)
    numbers = (x.numel() // vector, channels // vector)
    launch(bias_act_kernel, plan, cdiv(x.numel(), BLOCK), tensors, *numbers)


@cache
def _plan(vector: int, act: str, has_z: bool, is_pair: bool) -> LaunchPlan:
    """Counted by blocks of values."""
    constants = {"VECTOR": vector, "ACT": act, "HAS_Z": has_z, "IS_PAIR": is_pair, "BLOCK": BLOCK}
    return LaunchPlan(1, constants, num_warps=8)


def _fits(*tensors: Tensor) -> bool:
    return all(
        t.is_cuda and t.dtype in DTYPES and t.is_contiguous(memory_format=torch.channels_last)
        for t in tensors
    )


def _bias_act_(x: Tensor, bias: Tensor, z: Tensor | None, act: str) -> Tensor:
    if tl is None or not _fits(*(x,) if z is None else (x, z)):
        return bias_act_reference(x, bias, z, act)
    launch_bias_act(x, bias, z, act, into=x)
    return x


def _bias_act_pair_(x: Tensor, bias: Tensor, act: str) -> tuple[Tensor, Tensor]:
    if tl is None or not _fits(x):
        return bias_act_pair_reference(x, bias, act)
    result = torch.empty_like(x)
    launch_bias_act(x, bias, None, act, into=result)
    return x, result


# Not a custom_op, whose layers of Python cost the host more than these launches.
_library = torch.library.Library("combicam", "FRAGMENT")
_library.define("bias_act_(Tensor(a!) x, Tensor bias, Tensor? z, str act) -> Tensor(a!)")
_library.define("bias_act_pair_(Tensor(a!) x, Tensor bias, str act) -> (Tensor(a!), Tensor)")
_library.impl("bias_act_", _bias_act_, "CompositeExplicitAutograd")
_library.impl("bias_act_pair_", _bias_act_pair_, "CompositeExplicitAutograd")
