"""The operator: what torch asks of one, and its errors."""

from __future__ import annotations

import pytest
import torch

from combicam.kernels import METHODS, cam_head, cam_head_reference
from combicam.kernels.cam_head import define, launch_cam_head


def pair(k: int = 2) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(5, 6, 7), (3, 12, 14), (2, 24, 28)]
    acts = [torch.randn(2, *s, generator=generator) for s in shapes]
    return acts, [torch.randn(2, k, *s, generator=generator) for s in shapes]


@pytest.mark.parametrize(
    ("fuse", "keep_layers", "dtype"),
    [("sum", True, torch.float32), ("none", True, torch.uint8), ("gated", False, torch.float16)],
)
def test_opcheck(fuse: str, keep_layers: bool, dtype: torch.dtype) -> None:
    """Its shapes, types and strides are known without computing it, also from channels-last."""
    acts, grads = pair()
    acts = [act.to(memory_format=torch.channels_last) for act in acts]
    arguments = (acts, grads, [24, 28], "gradcam", fuse, "map", True, 0.0, [], 1e-8)
    arguments += (keep_layers, dtype)
    define()
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


@pytest.mark.parametrize("fuse", ["sum", "product", "gated", "none"])
@pytest.mark.parametrize("normalize", ["map", "grid", "none"])
@pytest.mark.parametrize("eps", [0.0, 1e-3])
def test_a_scale_multiplies_the_gradients(
    fuse: str, normalize: str, eps: float, device: torch.device
) -> None:
    acts, grads = ([t.to(device) for t in tensors] for tensors in pair())
    scale = torch.tensor([[1.0, 0.25], [0.01, 3.0]], device=device)
    large = [g / scale[..., None, None, None] for g in grads]
    options = ((24, 28), "layercam", fuse, normalize, True, eps, (), 1e-8, True, torch.float32)
    for head in (cam_head, launch_cam_head):
        expected = head(acts, grads, *options)
        for ours, theirs in zip(head(acts, large, *options, scale), expected, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


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
    with pytest.raises(ValueError, match=r"scale \[B,K\] \(2, 2\), got \(2,\)"):
        cam_head(acts, grads, (24, 28), scale=torch.ones(2))
    with pytest.raises(ValueError, match="as many gradients as activations"):
        cam_head(acts, grads[:2], (24, 28))
    with pytest.raises(ValueError, match="method"):
        cam_head(acts, grads, (24, 28), method="gradcam2")
