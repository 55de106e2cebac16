"""Scaling beside Pillow's and torchvision's, and turning small images instead of large ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import center_crop
from torchvision.transforms.functional import resize as torchvision_resize

from combicam.engine.images.resize import (
    ORIENTATIONS,
    fast_scale,
    resize,
    scaled_size,
    turned,
    visible_box,
)
from combicam.export.preprocess import Preprocess

SIZES = [(1, 1), (7, 63), (64, 48), (37, 91), (300, 20), (160, 213), (213, 160)]
# Levels, of noise: one a pass. Photos are held to one.
TOLERANCE = {"bilinear": 2, "bicubic": 2, "lanczos": 0, "nearest": 0}


def noise(width: int, height: int, seed: int = 0) -> np.ndarray:
    """The hardest there is: black, white, and nothing in between."""
    levels = np.random.default_rng(seed).integers(0, 2, (height, width, 3))
    return (255 * levels).astype(np.uint8)


def photo(width: int, height: int) -> np.ndarray:
    coarse = Image.fromarray(np.random.default_rng(3).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    return np.array(coarse.resize((width, height), Image.Resampling.BICUBIC))


def difference(a: np.ndarray, b: np.ndarray) -> int:
    assert a.shape == b.shape
    return int(np.abs(a.astype(int) - b).max())


@pytest.mark.parametrize("interpolation", TOLERANCE)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("to", [(32, 32), (45, 20), (100, 130)])
def test_squash_is_pillows(size: tuple[int, int], to: tuple[int, int], interpolation: str) -> None:
    pixels, method = noise(*size), getattr(Image.Resampling, interpolation.upper())
    image, (height, width) = Image.fromarray(pixels), to
    if interpolation in ("bilinear", "bicubic"):
        image = image.resize((width, size[1]), method)
    expected = np.asarray(image.resize((width, height), method))
    preprocess = Preprocess(to, resize="squash", interpolation=interpolation)
    found = resize(pixels, 1, size, preprocess)
    assert difference(found, expected) <= TOLERANCE[interpolation]
    assert found.flags["C_CONTIGUOUS"] and found.flags["WRITEABLE"]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(640, 480), (480, 640), (500, 375), (333, 333)])
def test_photos_are_pillows_and_torchvisions(size: tuple[int, int], interpolation: str) -> None:
    pixels = photo(*size)
    preprocess = Preprocess((98, 98), interpolation=interpolation)
    found = resize(pixels, 1, size, preprocess)
    mode, short = InterpolationMode(interpolation), 112  # 98 / 0.875
    image = torchvision_resize(Image.fromarray(pixels), [short], mode)
    assert difference(found, np.asarray(center_crop(image, [98, 98]))) <= 1
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    tensor = center_crop(torchvision_resize(tensor, [short], mode, antialias=True), [98, 98])
    assert difference(found, tensor.permute(1, 2, 0).numpy()) <= 1


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_turned_is_what_pillow_does(orientation: int) -> None:
    pixels, exif = noise(5, 3), Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(pixels)
    image.getexif()[0x0112] = orientation
    assert difference(turned(pixels, orientation), np.asarray(ImageOps.exif_transpose(image))) == 0


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("resize_", ["squash", "crop", "short-side", "cover"])
@pytest.mark.parametrize("interpolation", TOLERANCE)
def test_turning_first_or_last_is_the_same(
    orientation: int, resize_: str, interpolation: str
) -> None:
    pixels = noise(83, 57)
    upright = np.ascontiguousarray(turned(pixels, orientation))
    preprocess = Preprocess((30, 41), resize=resize_, interpolation=interpolation, side_step=1)
    size = (upright.shape[1], upright.shape[0])
    found = resize(pixels, orientation, size, preprocess)
    assert difference(found, resize(upright, 1, size, preprocess)) <= TOLERANCE[interpolation] // 2


@pytest.mark.parametrize(
    "photo_size, covering",
    [((640, 480), (341, 256)), ((481, 640), (256, 340)), ((256, 256), (256, 256))],
)
def test_cover_is_what_crop_takes_the_centre_of(
    photo_size: tuple[int, int], covering: tuple[int, int]
) -> None:
    crop = Preprocess((224, 224))
    cover = Preprocess((224, 224), resize="cover")
    assert scaled_size(photo_size, crop) == scaled_size(photo_size, cover) == covering
    pixels = noise(*photo_size)
    found = resize(pixels, 1, photo_size, cover)
    assert found.shape == (covering[1], covering[0], 3)
    y, x = (round((side - 224) / 2) for side in found.shape[:2])
    centre = found[y : y + 224, x : x + 224]
    assert np.array_equal(centre, resize(pixels, 1, photo_size, crop))


def test_a_strip_of_one_row_stays_small() -> None:
    cover = Preprocess((224, 224), resize="cover")
    assert cover.size_of(60_000, 1) == (256, 4096) and cover.size_of(1, 60_000) == (4096, 256)
    assert cover.size_of(1600, 100) == (256, 4096) and cover.size_of(1599, 100) == (256, 4093)


def test_long_photos_are_cropped_before_they_are_scaled() -> None:
    pixels = np.repeat(noise(4000, 1), 3, 0)
    preprocess = Preprocess((28, 28))
    assert scaled_size((4000, 3), preprocess) == (42666, 32)
    found = resize(pixels, 1, (4000, 3), preprocess)
    whole = Image.fromarray(pixels).resize((42666, 32), Image.Resampling.BILINEAR)
    left = round((42666 - 28) / 2)
    expected = np.asarray(whole.crop((left, 2, left + 28, 30)))
    assert difference(found, expected) <= 1


@pytest.mark.parametrize(
    "photo_size, scale",
    [
        ((4032, 3024), 4),
        ((8064, 6048), 8),
        ((4030, 3026), 2),
        ((4031, 3024), 1),
        ((1024, 1024), 2),
        ((1022, 1024), 1),
        ((99, 99), 1),
    ],
)
def test_twice_the_size_is_left(photo_size: tuple[int, int], scale: int) -> None:
    assert fast_scale(photo_size, Preprocess((224, 224))) == scale
    assert fast_scale(photo_size[::-1], Preprocess((224, 224))) == scale


@pytest.mark.parametrize("size", [(640, 480), (333, 500), (200, 200), (4000, 3)])
@pytest.mark.parametrize("resize_", ["squash", "crop", "short-side"])
def test_the_visible_box_is_what_the_input_shows(size: tuple[int, int], resize_: str) -> None:
    """Resizing that box alone, with Pillow, gives the network's input."""
    preprocess = Preprocess((56, 40), resize=resize_, crop_pct=0.8)
    pixels = photo(*size)
    height, width = preprocess.size_of(*size)
    box = visible_box(size, preprocess)
    alone = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR, box=box)
    assert difference(resize(pixels, 1, size, preprocess), np.asarray(alone)) <= 2
    assert (box == (0, 0, *size)) == (resize_ != "crop")
    assert visible_box(size, None) == (0, 0, *size)


def test_the_visible_box_by_hand() -> None:
    # 640x480 covers 100x100 as 133x100; the centre of 80x80 begins at column 26.5, rounded to 26.
    left, top, right, bottom = visible_box((640, 480), Preprocess((80, 80), crop_pct=0.8))
    assert (left, right) == pytest.approx((26 * 640 / 133, 106 * 640 / 133))
    assert (top, bottom) == pytest.approx((48, 432))
