"""Layer maps against formulas written by hand in float64."""

from __future__ import annotations

import cam_oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from combicam.kernels import METHODS, weigh_reference

SCALE_FREE = ("gradcam", "xgradcam", "hirescam", "elementwise", "layercam")


def random_pair(b: int, k: int, c: int, h: int, w: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    acts = torch.randn(b, c, h, w, generator=generator).relu()
    return acts, torch.randn(b, k, c, h, w, generator=generator)


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=15, deadline=None)
@given(
    b=st.integers(1, 3),
    k=st.integers(1, 3),
    c=st.sampled_from([1, 7, 63]),
    h=st.sampled_from([1, 7, 12]),
    w=st.sampled_from([1, 5, 14]),
    seed=st.integers(0, 99),
)
def test_equals_the_formula(method: str, b: int, k: int, c: int, h: int, w: int, seed: int) -> None:
    acts, grads = random_pair(b, k, c, h, w, seed)
    maps = weigh_reference(acts, grads, method)
    assert maps.shape == (b, k, h, w)
    for i in range(k):
        expected = cam_oracle.METHODS[method](acts.double(), grads[:, i].double())
        bound = 1e-5 * max(1.0, float(expected.abs().max()))
        # The divisor of XGrad-CAM may be next to zero, which float32 cannot resolve.
        dead = (acts.sum((2, 3)) < 1e-3).any() and method == "xgradcam"
        assert dead or (maps[:, i] - expected).abs().max() < bound


@pytest.mark.parametrize("method", SCALE_FREE)
def test_scale_of_gradients_is_scale_of_maps(method: str) -> None:
    acts, grads = random_pair(2, 1, 8, 6, 5)
    maps = weigh_reference(acts, grads, method)
    torch.testing.assert_close(weigh_reference(acts, grads * 1024, method), maps * 1024)
    assert maps.max() > 0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_accumulate_in_float32(method: str, dtype: torch.dtype) -> None:
    acts, grads = (t.to(dtype) for t in random_pair(2, 2, 257, 9, 9))
    maps = weigh_reference(acts, grads, method)
    assert maps.dtype == torch.float32
    torch.testing.assert_close(maps, weigh_reference(acts.float(), grads.float(), method))


@pytest.mark.parametrize("method", METHODS)
def test_memory_layout_does_not_matter(method: str) -> None:
    acts, grads = random_pair(2, 1, 6, 7, 5)
    last = acts.to(memory_format=torch.channels_last)
    strided = torch.stack([grads, grads * 0], -1)[..., 0]
    torch.testing.assert_close(
        weigh_reference(last, strided, method), weigh_reference(acts, grads, method)
    )


@pytest.mark.parametrize("method", METHODS)
def test_images_of_a_batch_are_independent(method: str) -> None:
    acts, grads = random_pair(3, 2, 6, 7, 5)
    alone = weigh_reference(acts[1:2], grads[1:2], method)
    torch.testing.assert_close(weigh_reference(acts, grads, method)[1:2], alone)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(
        weigh_reference(acts[order], grads[order], method),
        weigh_reference(acts, grads, method)[order],
    )
