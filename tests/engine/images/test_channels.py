"""Photos of every mode for networks of grey images; luma is Pillow's, and by hand."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from combicam.engine.images import jpeg as fast_jpeg
from combicam.engine.images.channels import batch_channels, image_channels, photo_pixels
from combicam.engine.images.decode import DecodeConfig, decode_image
from combicam.export.preprocess import Preprocess

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (40, 52, 3), np.uint8)
SMOOTH = Image.fromarray(RNG.integers(0, 256, (5, 7, 3), np.uint8)).resize((52, 40))
GREY = Preprocess((40, 52), resize="squash", channels=1)


def with_alpha(image: Image.Image) -> Image.Image:
    image = image.copy()
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def by_hand(rgb: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return rgb.astype(np.float64) @ (0.299, 0.587, 0.114)


def test_luma_is_bt601_and_the_same_for_images_and_batches() -> None:
    found = image_channels(PIXELS, 1)
    assert found.shape == (40, 52, 1) and found.dtype == np.uint8
    assert np.abs(found[..., 0] - by_hand(PIXELS)).max() <= 0.51
    every = torch.from_numpy(np.stack([PIXELS, PIXELS[::-1].copy()]))
    both = batch_channels(every, 1)
    assert both.shape == (2, 40, 52, 1)
    assert np.array_equal(both[0].numpy(), found) and np.array_equal(both[1].numpy(), found[::-1])
    levels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1)
    repeated = batch_channels(levels, 3)
    assert torch.equal(batch_channels(repeated, 1), levels)  # grey stays as it is
    assert np.array_equal(image_channels(levels[0].numpy(), 3), repeated[0].numpy())


@pytest.mark.parametrize(
    "image",
    [
        SMOOTH,
        SMOOTH.convert("L"),
        SMOOTH.convert("1"),
        SMOOTH.quantize(16),
        SMOOTH.convert("CMYK"),
        SMOOTH.convert("LA"),
        with_alpha(SMOOTH),
        with_alpha(SMOOTH.convert("L")),
        Image.fromarray(np.asarray(SMOOTH.convert("L")).astype(np.uint16) * 257),
    ],
    ids=lambda image: image.mode,
)
def test_grey_is_the_luma_of_what_rgb_is(image: Image.Image) -> None:
    rgb, grey = photo_pixels(image, 3), photo_pixels(image, 1)
    assert rgb.shape == (40, 52, 3) and grey.shape == (40, 52, 1)
    assert np.array_equal(grey, image_channels(rgb, 1))


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize(
    ("image", "kind"),
    [
        (SMOOTH, "JPEG"),
        (SMOOTH.convert("L"), "JPEG"),
        (SMOOTH.convert("CMYK"), "JPEG"),
        (SMOOTH.convert("L"), "PNG"),
        (with_alpha(SMOOTH), "PNG"),
        (SMOOTH.quantize(16), "GIF"),
    ],
)
@pytest.mark.parametrize("interpolation", ["bilinear", "lanczos"])
@pytest.mark.parametrize("size", [(40, 52), (17, 30)])
def test_a_decoded_photo_is_the_luma_of_the_decoded_rgb(
    image: Image.Image,
    kind: str,
    interpolation: str,
    size: tuple[int, int],
    fast: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not fast:
        monkeypatch.setattr(fast_jpeg, "simplejpeg", None)
    grey = replace(GREY, input_size=size, interpolation=interpolation)
    data = encoded(image, kind)
    found = decode_image(data, grey).pixels
    assert found.shape == (*size, 1) and found.flags.c_contiguous
    rgb = decode_image(data, grey.in_colour()).pixels
    off = np.abs(found[..., 0] - by_hand(rgb)).max()
    # Luma is taken before the image is scaled, which rounds once more.
    assert off <= (0.51 if size == (40, 52) else 2.01)


def test_all_decoders_give_the_same_grey() -> None:
    for image in (SMOOTH, SMOOTH.convert("L")):
        data = encoded(image, "JPEG", quality=80)
        found = {d: decode_image(data, GREY, DecodeConfig(d)) for d in ("auto", "pillow")}
        assert found["auto"].decoder == "simplejpeg" and found["pillow"].decoder == "pillow"
        assert np.array_equal(found["auto"].pixels, found["pillow"].pixels)


def test_an_upright_grey_photo() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = decode_image(encoded(SMOOTH.convert("L"), "PNG", exif=exif), GREY)
    rgb = decode_image(encoded(SMOOTH, "PNG", exif=exif), GREY.in_colour())
    assert (turned.width, turned.height) == (rgb.width, rgb.height) == (40, 52)
    assert np.abs(turned.pixels[..., 0] - by_hand(rgb.pixels)).max() <= 2.01


def test_other_channels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"decode: expected a network of 1 channel .* one of 4"):
        decode_image(encoded(SMOOTH, "PNG"), Preprocess((4, 4), channels=4))
