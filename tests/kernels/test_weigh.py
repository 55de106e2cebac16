"""Layer maps against formulas written by hand in float64."""

from __future__ import annotations

import cam_oracle
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from combicam.kernels import METHODS, weigh_reference
from combicam.kernels.layout import SLOTS
from combicam.kernels.pool import map_scale
from combicam.kernels.principal import EIGEN
from combicam.kernels.weigh import EPS, launch_weigh

SCALE_FREE = ("gradcam", "xgradcam", "hirescam", "elementwise", "layercam")


def random_pair(b: int, k: int, c: int, h: int, w: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    acts = torch.randn(b, c, h, w, generator=generator).relu()
    return acts, torch.randn(b, k, c, h, w, generator=generator)


def _centred(x: torch.Tensor) -> torch.Tensor:
    """Channels over pixels, without their means: float64 [B,C,P]."""
    x = x.double().flatten(2)
    return x - x.mean(2, keepdim=True)


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=15)
@example(b=1, k=3, c=7, h=1, w=5, seed=15)
@example(b=1, k=1, c=63, h=12, w=14, seed=10)
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
    # By default fullgrad adds 1e-8 to a range, which may be as small as the products are.
    maps = weigh_reference(acts, grads, method, 0.0 if method == "fullgrad" else EPS)
    assert maps.shape == (b, k, h, w)
    for i in range(k):
        expected = cam_oracle.HEAD[method](acts.double(), grads[:, i].double())
        bound = 1e-5 * max(1.0, float(expected.abs().max()))
        if method == "fullgrad":  # divides by the channels' ranges, which may be small differences
            x = (acts * grads[:, i]).abs()
            span = x.amax((-2, -1)) - x.amin((-2, -1))
            ratios = torch.where(span > 0, x.amax((-2, -1)) / span, 0.0)
            bound *= max(1.0, 0.1 * float(ratios.max()))
        if method in EIGEN:  # whose first two components may be of nearly the same size
            x = acts if method == "eigencam" else acts * grads[:, i]
            first, second, *_ = (*torch.linalg.svdvals(_centred(x)).unbind(1), 0)
            bound *= max(1.0, 0.05 * float((first / (first - second)).nan_to_num(1).max()))
        assert (maps[:, i] - expected).abs().max() < bound


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


# float32 sums in another order; bfloat16 and float16 inputs are exact in float32.
TOLERANCE = 2e-5
LAYOUTS = ("contiguous", "channels_last", "every second row", "channels_last, one act")


def laid_out(x: torch.Tensor, layout: str) -> torch.Tensor:
    """The same values [...,C,h,w] in other memory."""
    if layout == "channels_last":
        return x.movedim(-3, -1).contiguous().movedim(-1, -3)
    if layout == "every second row":
        wide = x.new_full((*x.shape[:-2], 2 * x.shape[-2], x.shape[-1]), torch.nan)
        wide[..., ::2, :] = x
        return wide[..., ::2, :]
    return x.contiguous()


def eigen_gap(acts: torch.Tensor, grads: torch.Tensor, method: str) -> float:
    """By which share the two largest singular values differ, at least: close ones are told apart by
    rounding."""
    x = acts.cpu().double()[:, None].flatten(3)
    if method == "eigengradcam":
        x = x * grads.cpu().double().flatten(3)
    values = torch.linalg.svdvals(x - x.mean(-1, keepdim=True))
    if values.shape[-1] < 2:
        return 1.0
    largest = values[..., 0].clamp_min(1e-12)
    return max(1e-6, float(((values[..., 0] - values[..., 1]) / largest).min()))


def assert_kernels_equal_reference(
    acts: list[torch.Tensor], grads: list[torch.Tensor], method: str
) -> None:
    """Every layer's maps, wherever they lie in the buffer, and nothing else in it."""
    maps, grids = launch_weigh(acts, grads, method)
    flat = maps.cpu()
    assert [tuple(grid) for grid in grids] == [tuple(a.shape[2:]) for a in acts]
    for a, g in zip(acts, grads, strict=True):
        expected = weigh_reference(a.cpu(), g.cpu(), method)
        maps, flat = flat[: expected.numel()].view_as(expected), flat[expected.numel() :]
        scale = max(1e-3, float(expected.abs().max()))
        tolerance = TOLERANCE + (1e-6 / eigen_gap(a, g, method) if method in EIGEN else 0.0)
        torch.testing.assert_close(maps / scale, expected / scale, atol=tolerance, rtol=0)
    assert flat.numel() == 0


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    b=st.integers(1, 2),
    k=st.sampled_from([1, 2, 3, 9]),
    shapes=st.lists(
        st.tuples(
            st.sampled_from([1, 3, 24, 65]),
            st.sampled_from([1, 7, 16]),
            st.sampled_from([1, 9, 63]),
        ),
        min_size=1,
        max_size=3,
    ),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    layout=st.sampled_from(LAYOUTS),
    seed=st.integers(0, 99),
)
def test_kernels(
    method: str,
    b: int,
    k: int,
    shapes: list[tuple[int, int, int]],
    dtype: torch.dtype,
    layout: str,
    seed: int,
    device: torch.device,
) -> None:
    acts, grads = [], []
    for i, shape in enumerate(shapes):
        a, g = random_pair(b, k, *shape, seed=seed + i)
        a = (a + 0.25).to(device, dtype)  # XGrad-CAM divides by their sum
        acts.append(laid_out(a, layout.removesuffix(", one act") if i == 0 else layout))
        grads.append(laid_out(g.to(device, dtype), layout))
    assert_kernels_equal_reference(acts, grads, method)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("method", ["gradcam", "gradcam++", "layercam"])
def test_more_layers_than_one_launch_takes(method: str, device: torch.device) -> None:
    pairs = [random_pair(2, 1, 1 + i, 5, 3 + i, seed=i) for i in range(2 * SLOTS + 3)]
    acts, grads = ([x.to(device) for x in tensors] for tensors in zip(*pairs, strict=True))
    assert_kernels_equal_reference(acts, grads, method)


@pytest.mark.parametrize("shape", [(1023, 1, 1), (2, 63, 65), (130, 1, 257)])
def test_sums_longer_than_a_block(shape: tuple[int, int, int], device: torch.device) -> None:
    a, g = random_pair(1, 1, *shape)
    for method in ("gradcam", "hirescam"):
        for layout in ("contiguous", "channels_last"):
            acts, grads = laid_out(a.to(device), layout), laid_out(g.to(device), layout)
            assert_kernels_equal_reference([acts], [grads], method)


@pytest.mark.parametrize("method", METHODS)
def test_nan_stays_in_its_image(method: str, device: torch.device) -> None:
    a, g = random_pair(3, 2, 5, 4, 4)
    a += 0.25
    clean = launch_weigh([a.to(device)], [g.to(device)], method)[0].view(3, 2, 4, 4)
    a[1, 2, 3, 3] = torch.nan
    maps = launch_weigh([a.to(device)], [g.to(device)], method)[0].view(3, 2, 4, 4)
    assert maps[1].isnan().any(-1).any(-1).all()
    torch.testing.assert_close(maps[::2], clean[::2], rtol=0, atol=0)
    expected = weigh_reference(a, g, method)
    assert torch.equal(maps.isnan().cpu(), expected.isnan())


def test_offsets_beyond_32_bits(device: torch.device) -> None:
    """Two images, two targets, each more than 2^31 bytes of bfloat16 from the next."""
    step = 2**30 + 7
    memory = torch.empty(3 * step + 64, dtype=torch.bfloat16, device=device)
    grads = memory.as_strided((2, 2, 2, 3, 4), (2 * step, step, 12, 4, 1))
    acts = memory.as_strided((2, 2, 3, 4), (2 * step + 30, 12, 4, 1), 30)
    a, g = random_pair(2, 2, 2, 3, 4)
    grads.copy_(g)
    acts.copy_(a)
    assert grads.stride(0) + grads.stride(1) > 2**31
    assert_kernels_equal_reference([acts], [grads], "gradcam")
    assert_kernels_equal_reference([acts], [grads], "hirescam")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("eps", [1e-8, 0.0])
def test_scaled_gradients(method: str, eps: float, device: torch.device) -> None:
    """Gradients that float32 cannot hold as they are: maps by the formula, in float64."""
    acts, grads = random_pair(3, 2, 5, 6, 7)
    scale = torch.tensor([[1.0, 1e-2], [1e-6, 1e-12], [3e-20, 1e3]])
    expected = weigh_reference(acts, grads, method, eps, scale)
    factor = map_scale(scale.double(), method, eps)
    for i in range(2):
        small = grads[:, i].double() * scale[:, i].double()[:, None, None, None]
        by_hand = cam_oracle.HEAD[method](acts.double(), small)
        if method in (("gradcam++", "xgradcam") if eps == 0 else ("fullgrad",)):
            continue  # the oracle has its own
        size = expected[:, i].amax((1, 2), keepdim=True)
        found = by_hand / factor[:, i, None, None]
        torch.testing.assert_close(
            (expected[:, i] / size).double(), found / size, atol=2e-5, rtol=0
        )
    ours, _ = launch_weigh([acts.to(device)], [grads.to(device)], method, eps, scale.to(device))
    size = expected.amax((2, 3), keepdim=True)
    torch.testing.assert_close(
        ours.cpu().view_as(expected) / size, expected / size, atol=2e-5, rtol=0
    )
