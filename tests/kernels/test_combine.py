"""Fusion: linearity, conventions of the corners, flat maps, ranges."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from combicam.kernels import combine_reference
from combicam.kernels.combine import DTYPES, FUSES, NORMALIZES, launch_combine
from combicam.kernels.extremes import is_flat, min_max

SIZE = (24, 31)


def random_maps(count: int = 4, batch: int = 2, targets: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    grids = [(7, 9), (7, 9), (3, 4), (1, 1), (24, 31)][:count]
    return [torch.rand(batch, targets, *grid, generator=generator) * 3 for grid in grids]


def by_hand(maps: list[torch.Tensor], align: bool) -> list[torch.Tensor]:
    kwargs = {"size": SIZE, "mode": "bilinear", "align_corners": align}
    return [F.interpolate(m.double(), **kwargs) for m in maps]  # type: ignore[arg-type]


def unit(x: torch.Tensor) -> torch.Tensor:
    low, high = x.amin((-2, -1), keepdim=True), x.amax((-2, -1), keepdim=True)
    return torch.where(high > low, (x - low) / (high - low), 0.0)


@pytest.mark.parametrize("align", [True, False])
@pytest.mark.parametrize("fuse", ["sum", "mean", "max", "product", "gated"])
def test_fusion_of_upsampled_maps(fuse: str, align: bool) -> None:
    maps = random_maps()[:: -1 if fuse == "gated" else 1]  # a last layer of one cell is flat
    stack = torch.stack(by_hand(maps, align))
    expected = {
        "sum": stack.sum(0),
        "mean": stack.mean(0),
        "max": stack.amax(0),
        "product": stack.prod(0),
        "gated": unit(stack[-1]) * unit(stack.sum(0)),
    }[fuse]
    fused, ranges = combine_reference(maps, SIZE, fuse, "none", align)
    assert (fused - expected).abs().max() < 1e-5 * expected.max()
    torch.testing.assert_close(
        ranges[..., 0].double(), expected.amin((-2, -1)), rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(
        ranges[..., 1].double(), expected.amax((-2, -1)), rtol=1e-5, atol=1e-5
    )


def test_corners_of_the_two_conventions() -> None:
    ramp = torch.tensor([[0.0, 1.0]])[None, None]
    aligned, _ = combine_reference([ramp], (1, 4), "sum", "none", True)
    half, _ = combine_reference([ramp], (1, 4), "sum", "none", False)
    np.testing.assert_allclose(aligned[0, 0, 0], [0, 1 / 3, 2 / 3, 1], atol=1e-6)
    np.testing.assert_allclose(half[0, 0, 0], [0, 0.25, 0.75, 1], atol=1e-6)


@pytest.mark.parametrize("fuse", FUSES)
@pytest.mark.parametrize("normalize", NORMALIZES)
def test_final_normalisation_fills_the_unit_range(fuse: str, normalize: str) -> None:
    heatmaps, ranges = combine_reference(random_maps(3), SIZE, fuse, normalize)
    lead = (2, 2, 3) if fuse == "none" else (2, 2)
    assert heatmaps.shape == (*lead, *SIZE) and ranges.shape == (*lead, 2)
    if normalize.endswith("map"):
        high, low = heatmaps.amax((-2, -1)), heatmaps.amin((-2, -1))
        varied = ranges[..., 1] > ranges[..., 0]
        assert varied.any() and (low == 0).all()
        torch.testing.assert_close(high, varied.float())
    else:
        torch.testing.assert_close(heatmaps.amax((-2, -1)), ranges[..., 1])


def test_layers_are_normalised_at_image_size_or_on_their_grid() -> None:
    maps = random_maps(3)
    for normalize, expected in (
        ("layer", sum(min_max(m)[0] for m in by_hand(maps, True))),
        ("grid", sum(by_hand([min_max(m)[0] for m in maps], True))),
    ):
        fused, _ = combine_reference(maps, SIZE, "sum", normalize)
        assert (fused - expected).abs().max() < 1e-5


def test_layer_weights_multiply_after_the_layers_normalisation() -> None:
    maps, weights = random_maps(3), (0.5, 2.0, 3.0)
    for normalize in ("none", "layer"):
        full = by_hand(maps, True)
        full = [min_max(m)[0] for m in full] if normalize == "layer" else full
        expected = sum(w * m for w, m in zip(weights, full, strict=True))
        fused, _ = combine_reference(maps, SIZE, "sum", normalize, layer_weights=weights)
        assert (fused - expected).abs().max() < 1e-5


@pytest.mark.parametrize("value", [0.0, 5.0, 1e30])
def test_flat_maps_give_zeros(value: float) -> None:
    heatmaps, ranges = combine_reference([torch.full((1, 1, 4, 4), value)], (8, 8))
    assert (heatmaps == 0).all()
    torch.testing.assert_close(ranges, torch.full((1, 1, 2), value))


def test_nan_shows_in_the_ranges_and_never_in_the_heatmap() -> None:
    maps = [torch.ones(2, 1, 4, 4)]
    maps[0][0, 0, 1, 1] = torch.nan
    maps[0][1, 0, 1, 1] = 2
    heatmaps, ranges = combine_reference(maps, (8, 8))
    assert heatmaps.isfinite().all() and ranges[0].isnan().all() and ranges[1].isfinite().all()


def test_eps_is_added_to_the_divisor() -> None:
    maps = torch.tensor([[0.0, 1.0]])[None, None]
    heatmaps, _ = combine_reference([maps], (1, 2), eps=1.0)
    np.testing.assert_allclose(heatmaps[0, 0, 0], [0, 0.5])


def test_a_small_variation_on_a_small_map_is_not_flat() -> None:
    maps = torch.tensor([[1e-20, 2e-20]])[None, None]
    heatmaps, ranges = combine_reference([maps], (1, 2))
    np.testing.assert_allclose(heatmaps[0, 0, 0], [0, 1])
    assert not is_flat(ranges).any() and is_flat(torch.tensor([5.0, 5.0000005]))


def launched(
    maps: list[torch.Tensor],
    size: tuple[int, int],
    device: torch.device,
    *args: object,
    **kw: object,
) -> tuple[torch.Tensor, torch.Tensor]:
    flat = torch.cat([m.flatten() for m in maps]).to(device)
    grids = [(m.shape[2], m.shape[3]) for m in maps]
    return launch_combine(flat, maps[0].shape[:2], grids, size, *args, **kw)  # type: ignore[arg-type]


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("align", [True, False])
@pytest.mark.parametrize("normalize", NORMALIZES)
@pytest.mark.parametrize("fuse", FUSES)
def test_kernels(fuse: str, normalize: str, align: bool, device: torch.device) -> None:
    maps = random_maps(5)
    if fuse == "product":
        del maps[3]  # a layer of one cell is flat: normalised it makes every product zero
    size = SIZE if align else (40, 53)  # one layer has image size; or none, and several tiles
    weights = (0.5, -1.0, 2.0, 1.0, 3.0)[: len(maps)] if align else ()
    options = (fuse, normalize, align, 0.0 if align else 0.1, weights)
    expected = combine_reference(maps, size, *options)
    found = launched(maps, size, device, *options)
    # A final min-max magnifies the rounding of a map that hardly varies.
    span = float((expected[1][..., 1] - expected[1][..., 0]).min() / expected[1].abs().max())
    tolerance = 3e-6 / min(max(span, 1e-3), 1) if normalize.endswith("map") else 3e-6
    for ours, theirs in zip(found, expected, strict=True):
        scale = float(theirs.abs().max())
        torch.testing.assert_close(ours.cpu() / scale, theirs / scale, atol=tolerance, rtol=0)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", DTYPES)
def test_kernels_write_the_type_that_is_stored(dtype: torch.dtype, device: torch.device) -> None:
    maps = random_maps(3)
    found, _ = launched(maps, (40, 53), device, dtype=dtype)
    expected, _ = combine_reference(maps, (40, 53), dtype=dtype)
    assert found.dtype == dtype and found.float().max() == (255 if dtype == torch.uint8 else 1)
    difference = (found.cpu().float() - expected.float()).abs()
    # Half a level up or down may be decided by float32's rounding.
    assert difference.max() <= (1 if dtype == torch.uint8 else 1e-3)
    assert (difference > 1e-5).float().mean() < 1e-2


def test_uint8_rounds_half_to_even(device: torch.device) -> None:
    levels = torch.tensor([0.0, 0.5, 1.5, 2.5, 254.5, 255.0]).view(1, 1, 1, 6)
    found, _ = launched([levels], (1, 6), device, dtype=torch.uint8)
    assert found.flatten().tolist() == [0, 0, 2, 2, 254, 255]
    expected, _ = combine_reference([levels], (1, 6), dtype=torch.uint8)
    assert torch.equal(found.cpu(), expected)


@pytest.mark.parametrize("value", [0.0, 5.0, 1e30, 1e-38, torch.nan, torch.inf])
def test_kernels_of_flat_maps(value: float, device: torch.device) -> None:
    maps = [torch.full((1, 1, 4, 4), value), torch.rand(1, 1, 4, 4) * (value == 0)]
    found, ranges = launched(maps, (40, 40), device)
    expected, limits = combine_reference(maps, (40, 40))
    torch.testing.assert_close(ranges.cpu(), limits, equal_nan=True)
    torch.testing.assert_close(found.cpu(), expected, atol=1e-5, rtol=0)
    assert (found == 0).all() or value == 0


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("normalize", NORMALIZES)
@pytest.mark.parametrize("fuse", FUSES)
def test_no_layer_that_is_not_finite_is_left_out(
    fuse: str, normalize: str, value: float, layer: int, device: torch.device
) -> None:
    """Not by a min-max of its own, nor by a gate."""
    maps = random_maps(3)
    maps[layer][0, 1, 0, 0] = value
    expected = combine_reference(maps, SIZE, fuse, normalize)
    found = launched(maps, SIZE, device, fuse, normalize)
    for heatmaps, ranges in (expected, found):
        if fuse == "none":
            heatmaps, ranges = heatmaps[:, :, layer], ranges[:, :, layer]
        assert not ranges[0, 1].isfinite().all()
        assert not normalize.endswith("map") or (heatmaps[0, 1] == 0).all()
        assert ranges[1].isfinite().all() and ranges[0, 0].isfinite().all()
        assert heatmaps[1].isfinite().all() and heatmaps[0, 0].isfinite().all()


def test_a_gate_does_not_depend_on_weights(device: torch.device) -> None:
    """Where the last layer's weight is zero or negative it still says where."""
    maps, weights = random_maps(3), (1.0, 2.0, -0.5)
    total = sum(w * m for w, m in zip(weights, by_hand(maps, True), strict=True))
    expected = unit(by_hand(maps, True)[-1]) * unit(total)
    for head in (combine_reference, lambda *a, **k: launched(*a, device, **k)):
        found, _ = head(maps, SIZE, fuse="gated", normalize="none", layer_weights=weights)
        assert (found.cpu() - expected).abs().max() < 1e-5


def test_nan_of_one_map_leaves_the_others(device: torch.device) -> None:
    maps = random_maps(3)
    clean, _ = launched(maps, SIZE, device)
    maps[1][1, 0, 2, 2] = torch.nan
    heatmaps, ranges = launched(maps, SIZE, device)
    assert ranges[1, 0].isnan().all() and (heatmaps[1, 0] == 0).all()
    heatmaps[1, 0] = clean[1, 0]
    torch.testing.assert_close(heatmaps, clean, rtol=0, atol=0)
