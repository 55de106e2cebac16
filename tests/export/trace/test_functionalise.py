"""In-place operators become functional ones; only views of changed memory need a second trace."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from combicam.export.trace.functionalise import functionalise

Function = Callable[[Tensor], Tensor]


def chain(x: Tensor) -> Tensor:
    return (x * 2).add_(1).relu_().mul_(x)


def used_before_and_after(x: Tensor) -> Tensor:
    a = x * 2
    b, c = a.clone(), a.t().sum()
    a.sigmoid_()
    return a * b + c


def view_made_before(x: Tensor) -> Tensor:
    a = x * 2
    row = a[0]
    a.add_(1)
    return row + a.sum()


def view_of_a_view(x: Tensor) -> Tensor:
    a = x * 2
    row = a.t()[0]
    a.add_(1)
    return row.sum() + a


def write_to_a_view(x: Tensor) -> Tensor:
    a = x * 2
    a.view(-1).mul_(3)
    return a


def write_to_a_part(x: Tensor) -> Tensor:
    a = x * 2
    first, _ = a.split(2)
    first.add_(1)
    return a


def other_type(x: Tensor) -> Tensor:
    return (x * 2).half().add_(x)


def maybe_the_input(x: Tensor) -> Tensor:
    a = x.clone().contiguous()
    a.mul_(3)
    return a + x


@pytest.mark.parametrize(
    ("function", "is_traced_again"),
    [
        (chain, False),
        (used_before_and_after, False),
        (view_made_before, True),
        (view_of_a_view, True),
        (write_to_a_view, True),
        (write_to_a_part, True),
        (other_type, True),
        (maybe_the_input, False),
    ],
)
def test_mutations(function: Function, is_traced_again: bool) -> None:
    x = torch.randn(4, 5)
    example = FakeTensorMode().from_tensor(x)
    traced = make_fx(function)(example)
    expected = function(x.clone())
    found = functionalise(traced, [example])
    assert (found is not traced) == is_traced_again
    names = [str(node.target) for node in found.graph.nodes]
    assert not any(name.endswith("_.default") or "_.Tensor" in name for name in names)
    torch.testing.assert_close(found(x.clone()), expected)
