"""The operator: what torch asks of one, and its errors."""

from __future__ import annotations

import pytest
import torch

from combicam.kernels import METHODS, cam_head, cam_head_reference


def pair(k: int = 2) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(5, 6, 7), (3, 12, 14), (2, 24, 28)]
    acts = [torch.randn(2, *s, generator=generator) for s in shapes]
    return acts, [torch.randn(2, k, *s, generator=generator) for s in shapes]


@pytest.mark.parametrize("fuse", ["sum", "none"])
def test_opcheck(fuse: str) -> None:
    acts, grads = pair()
    arguments = (acts, grads, [24, 28], "gradcam", fuse, "map", True, 0.0, [], 1e-8)
    arguments += (True, torch.float32)
    result = torch.library.opcheck(torch.ops.combicam.cam_head, arguments)
    assert set(result.values()) == {"SUCCESS"}


@pytest.mark.parametrize("method", METHODS)
def test_operator_equals_reference(method: str) -> None:
    acts, grads = pair()
    ours = cam_head(acts, grads, (24, 28), method)
    reference = cam_head_reference(acts, grads, (24, 28), method, "sum", "map", True, 0.0, ())
    assert len(ours) == 2 + len(acts)
    for a, b in zip(ours, reference, strict=True):
        torch.testing.assert_close(a, b)


def test_compiles_without_a_graph_break() -> None:
    acts, grads = pair()
    compiled = torch.compile(
        lambda a, g: cam_head(a, g, (24, 28))[0] + 1, backend="aot_eager", fullgraph=True
    )
    torch.testing.assert_close(compiled(acts, grads), cam_head(acts, grads, (24, 28))[0] + 1)


def test_foreign_gradients_are_refused() -> None:
    acts, grads = pair()
    with pytest.raises(ValueError, match=r"must share \[B,C,h,w\], got \(2, 5, 6, 7\)"):
        cam_head(acts, grads[::-1], (24, 28))
    with pytest.raises(ValueError, match="as many gradients as activations"):
        cam_head(acts, grads[:2], (24, 28))
    with pytest.raises(ValueError, match="method"):
        cam_head(acts, grads, (24, 28), method="gradcam2")
