"""Every kind of photo, and every kind of damage, as bytes; with the fast decoder and without."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.Image import Transpose

from combicam.engine.images import jpeg as fast_jpeg
from combicam.engine.images.decode import DecodeConfig, TooLargeError, decode_image
from combicam.errors import DecodeError
from combicam.export.preprocess import Preprocess


@pytest.fixture(autouse=True, params=["simplejpeg", "pillow alone"])
def installed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Nothing that a test sees may depend on what is installed."""
    if request.param == "pillow alone":
        monkeypatch.setattr(fast_jpeg, "simplejpeg", None)
    else:
        assert fast_jpeg.simplejpeg is not None, "the tests need simplejpeg"
    return request.param


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def exact(image: Image.Image) -> Preprocess:
    """Keeps the size, so that pixels can be compared."""
    return Preprocess((image.height, image.width), resize="squash")


def decoded(image: Image.Image, kind: str, **options: Any) -> np.ndarray:
    return decode_image(encoded(image, kind, **options), exact(image)).pixels


def photo(width: int = 12, height: int = 8) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_rgb_is_exact(kind: str) -> None:
    assert np.array_equal(decoded(photo(), kind), np.asarray(photo()))


def test_webp_lossless_is_exact() -> None:
    assert np.array_equal(decoded(photo(), "WEBP", lossless=True), np.asarray(photo()))


TURNED = {
    1: None,
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", TURNED)
def test_exif_orientation_is_undone_once(orientation: int, kind: str) -> None:
    image = photo()
    exif = Image.Exif()
    exif[0x0112] = orientation
    turn = TURNED[orientation]
    upright = image if turn is None else image.transpose(turn)
    found = decode_image(encoded(image, kind, exif=exif), exact(upright))
    assert (found.width, found.height) == upright.size
    assert np.array_equal(found.pixels, np.asarray(upright))


@pytest.mark.parametrize("orientation", TURNED)
def test_rotated_jpegs_are_upright(orientation: int, installed: str) -> None:
    image, exif = photo(40, 24).resize((120, 72)), Image.Exif()
    exif[0x0112] = orientation
    data, turn = encoded(image, "JPEG", exif=exif), TURNED[orientation]
    stored = Image.open(io.BytesIO(data))
    upright = stored if turn is None else stored.transpose(turn)
    found = decode_image(data, exact(upright))
    assert (found.width, found.height) == upright.size
    assert found.decoder == ("simplejpeg" if installed == "simplejpeg" else "pillow")
    assert np.array_equal(found.pixels, np.asarray(upright))


@pytest.mark.parametrize("value", [0, 9, 70000, "abc", (1, 2)])
def test_impossible_orientations_are_ignored(
    value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image.Image, "getexif", lambda self: {0x0112: value})
    data = encoded(photo(), "JPEG")
    found = decode_image(data, exact(photo()))
    assert np.array_equal(found.pixels, np.asarray(Image.open(io.BytesIO(data))))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_unreadable_exif_does_not_lose_the_photo() -> None:
    data = encoded(photo(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xffgarbage")
    assert decode_image(data, exact(photo())).pixels.shape == (8, 12, 3)


def test_grayscale_jpeg() -> None:
    image = photo().convert("L")
    expected = np.asarray(Image.open(io.BytesIO(encoded(image, "JPEG"))))
    assert np.array_equal(decoded(image, "JPEG"), np.repeat(expected[..., None], 3, -1))


@pytest.mark.parametrize("mode", ["L", "1"])
def test_grayscale(mode: str) -> None:
    image = photo().convert(mode)
    expected = np.repeat(np.asarray(image.convert("L"))[..., None], 3, -1)
    assert np.array_equal(decoded(image, "PNG"), expected)


def test_cmyk_jpeg_is_not_inverted() -> None:
    red = Image.new("RGB", (16, 16), (220, 30, 30)).convert("CMYK")
    found = decode_image(encoded(red, "JPEG", quality=95), exact(red))
    assert np.abs(found.pixels[8, 8].astype(int) - (220, 30, 30)).max() <= 6
    assert found.decoder == "pillow"


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    samples = np.array([[0, 128, 129], [32768, 65406, 65535]], np.uint16)
    image = Image.fromarray(samples)
    assert image.mode.startswith("I;16")
    assert decoded(image, "PNG")[..., 0].tolist() == [[0, 0, 1], [128, 254, 255]]
    assert decoded(image, "TIFF")[..., 2].tolist() == [[0, 0, 1], [128, 254, 255]]


def test_samples_without_a_known_scale_are_refused() -> None:
    deep = Image.fromarray(np.array([[0, 70000]], np.int32))
    with pytest.raises(DecodeError, match="16 bits"):
        decoded(deep, "TIFF")
    with pytest.raises(DecodeError, match="floating point"):
        decoded(Image.fromarray(np.ones((2, 2), np.float32)), "TIFF")


def test_alpha_is_laid_on_white() -> None:
    image = Image.new("RGBA", (3, 1))
    for x, alpha in enumerate((0, 128, 255)):
        image.putpixel((x, 0), (200, 0, 0, alpha))
    pixels = decoded(image, "PNG")
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert np.abs(pixels[0, 1].astype(int) - (227, 127, 127)).max() <= 1
    assert pixels[0, 2].tolist() == [200, 0, 0]


def test_palette_transparency_is_laid_on_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    assert decoded(image, "PNG", transparency=0)[0].tolist() == [[255, 255, 255], [40, 50, 60]]
    assert decoded(image, "PNG")[0].tolist() == [[10, 20, 30], [40, 50, 60]]


def test_colour_key_transparency_is_laid_on_white() -> None:
    image = Image.new("RGB", (2, 1), (1, 2, 3))
    image.putpixel((1, 0), (9, 9, 9))
    pixels = decoded(image, "PNG", transparency=(1, 2, 3))
    assert pixels[0].tolist() == [[255, 255, 255], [9, 9, 9]]


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_animations_give_their_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    pixels = decoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert pixels[4, 4].tolist() == [255, 0, 0]


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_one_pixel(kind: str) -> None:
    data = encoded(Image.new("RGB", (1, 1), (9, 9, 9)), kind)
    for resize in ("squash", "crop"):
        found = decode_image(data, Preprocess((5, 7), resize=resize))
        assert (found.width, found.height) == (1, 1)
        assert (found.pixels == 9).all() and found.pixels.shape == (5, 7, 3)


@pytest.mark.parametrize("size", [(1, 20000), (20000, 1)])
@pytest.mark.parametrize("resize", ["squash", "crop", "short-side"])
def test_a_thread_of_an_image(size: tuple[int, int], resize: str) -> None:
    image = Image.new("RGB", size, (40, 40, 40))
    found = decode_image(encoded(image, "JPEG"), Preprocess((32, 48), resize=resize))
    assert (found.width, found.height) == size
    if resize != "short-side":
        assert found.pixels.shape == (32, 48, 3)
    assert (found.pixels == 40).all() and max(found.pixels.shape) <= 4 * 32


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_truncated_files_are_errors(kind: str, share: float) -> None:
    data = encoded(photo(64, 64), kind)
    decode_image(data, Preprocess((8, 8)))
    with pytest.raises(DecodeError):
        decode_image(data[: int(len(data) * share)], Preprocess((8, 8)))


@pytest.mark.parametrize(
    "data, message",
    [
        (b"", "empty file"),
        (b"<!DOCTYPE html><html>404</html>", "<!DOCTYPE ht"),
        (b"\xff\xd8\xff", "3 bytes"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PS-Adobe"),
    ],
)
def test_what_is_no_image_says_what_it_is(data: bytes, message: str) -> None:
    with pytest.raises(DecodeError, match="expected an image") as caught:
        decode_image(data, Preprocess((8, 8)))
    assert message in str(caught.value)
    assert "0x7" not in str(caught.value)


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header promises pixels that are not there."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def test_pixels_are_counted_before_decoding() -> None:
    with pytest.raises(TooLargeError, match="1001x1000") as caught:
        decode_image(bomb(1001, 1000), Preprocess((8, 8)), DecodeConfig(max_pixels=1_000_000))
    assert caught.value.size == (1001, 1000)
    with pytest.raises(DecodeError) as damaged:
        decode_image(bomb(1000, 1000), Preprocess((8, 8)), DecodeConfig(max_pixels=1_000_000))
    assert not isinstance(damaged.value, TooLargeError)


def with_frame(data: bytes, precision: int, width: int, height: int) -> bytes:
    """A JPEG whose frame header says something else."""
    at = data.index(b"\xff\xc0\x00\x11") + 4
    return data[:at] + struct.pack(">BHH", precision, height, width) + data[at + 5 :]


@pytest.mark.parametrize("scaled", [False, True])
def test_a_jpeg_bomb_is_refused_by_its_header(scaled: bool) -> None:
    data = with_frame(encoded(photo(), "JPEG"), 8, 60000, 20000)
    config = DecodeConfig(fast_scale=scaled)
    with pytest.raises(TooLargeError) as caught:
        decode_image(data, Preprocess((8, 8)), config)
    assert "bomb" in str(caught.value) or caught.value.size == (60000, 20000)


def test_jpegs_of_twelve_bits_are_refused() -> None:
    with pytest.raises(DecodeError):
        decode_image(with_frame(encoded(photo(), "JPEG"), 12, 12, 8), exact(photo()))


def test_pillows_own_limit_is_too_large_as_well() -> None:
    with pytest.raises(TooLargeError, match="decompression bomb"):
        decode_image(bomb(60000, 60000), Preprocess((8, 8)), DecodeConfig(max_pixels=10**12))


@pytest.mark.parametrize("size", [(64, 48), (37, 91), (300, 20), (9, 9)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_crop_is_resize_then_centre_crop(size: tuple[int, int], interpolation: str) -> None:
    image = photo(*size)
    short = 32  # floor(28 / 0.875), as timm's eval transform does
    width, height = image.size
    scaled = (
        (short, short * height // width) if width <= height else (short * width // height, short)
    )
    filter_ = getattr(Image.Resampling, interpolation.upper())
    whole = image.resize((scaled[0], height), filter_).resize(scaled, filter_)
    left, top = round((scaled[0] - 28) / 2), round((scaled[1] - 28) / 2)
    expected = np.asarray(whole.crop((left, top, left + 28, top + 28))).astype(int)
    preprocess = Preprocess((28, 28), crop_pct=0.875, interpolation=interpolation)
    found = decode_image(encoded(image, "PNG"), preprocess).pixels
    assert np.abs(found - expected).max() <= 1


def test_crop_of_a_thread_of_an_image_is_cheap() -> None:
    found = decode_image(encoded(photo(60000, 1), "PNG"), Preprocess((224, 224)))
    assert found.pixels.shape == (224, 224, 3)


def test_squash_sees_the_whole_photo() -> None:
    image = photo(40, 10)
    found = decode_image(encoded(image, "PNG"), Preprocess((6, 6), resize="squash"))
    expected = np.asarray(image.resize((6, 6), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(found.pixels - expected).max() <= 1


def test_unknown_decoders_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected decoder in .*got 'magic'"):
        DecodeConfig("magic")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"max_pixels": 0}, "max_pixels >= 1, got 0"),
        ({"decoder": "cv2"}, "decoder in .* got 'cv2'"),
    ],
)
def test_configurations_that_cannot_be(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=f"DecodeConfig: expected {words}"):
        DecodeConfig(**values)
